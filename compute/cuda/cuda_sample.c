/* Sampling where the logits are: choices that change no logit are made by the GPU, and only what was chosen
 * comes back; of the others, and of those that take more than the GPU's candidates, the row of logits does.
 */
#include "compute/cuda/cuda.h"

#include "base/rng.h"
#include "compute/ref/ref.h"
#include "compute/sample.h"

static int gpu_takes(const struct afd_device *device, const struct afd_choice *choice)
{
    return device->config.model->vocab <= AFD_SAMPLE_BLOCKS * AFD_DOT_BLOCK &&
           !afd_choice_changes_logits(choice);
}

static struct afd_gpu_choice gpu_choice(const struct afd_choice *choice, uint32_t vocab)
{
    const struct afd_sampling *s = choice->sampling;
    uint32_t best = s->logprobs > 1 ? s->logprobs - 1 : 0;
    int is_forced = choice->forced >= 0 && choice->forced < vocab;
    return (struct afd_gpu_choice){.logit_row = choice->logit_row,
                                   .top_k = s->top_k,
                                   .best = best < AFD_MAX_LOGPROBS ? best : AFD_MAX_LOGPROBS,
                                   .forced = is_forced ? (uint32_t)choice->forced : AFD_SAMPLE_NO_TOKEN,
                                   .temperature = s->temperature,
                                   .top_p = s->top_p,
                                   .min_p = s->min_p,
                                   .unit = afd_random_unit(s->seed, choice->token_count, 0)};
}

static uint32_t count_of(const struct afd_op *op, const struct afd_cuda_slot *s)
{
    uint32_t left = op->sample.count - s->choice_begin;
    return left < AFD_CUDA_CHOICES ? left : AFD_CUDA_CHOICES;
}

/* Those of the next choices that the GPU takes: to its kernel. */
static enum afd_status launch(struct afd_device *device, const struct afd_op *op)
{
    struct afd_cuda *cuda = device->state;
    struct afd_cuda_slot *s = &cuda->slots[op->slot];
    uint32_t vocab = device->config.model->vocab, taken = 0;
    s->has_copied = 0;
    for (uint32_t i = 0; i < count_of(op, s); i++) {
        const struct afd_choice *choice = &op->sample.choices[s->choice_begin + i];
        if (gpu_takes(device, choice)) s->choices[taken++] = gpu_choice(choice, vocab);
    }
    return AFD_CUDA_RUN(cuda, sample, taken, AFD_SAMPLE_PHASES, .logits = cuda->logits, .choices = s->choices,
                        .out = s->chosen, .pitch = cuda->sizes.vocab_pitch, .vocab = vocab);
}

enum afd_status afd_cuda_sample(struct afd_device *device, const struct afd_op *op)
{
    struct afd_cuda *cuda = device->state;
    cuda->slots[op->slot].choice_begin = 0;
    return launch(device, op);
}

/* Chooses by the CPU (`is_copied`), or copies the rows of logits that it will read; of the choices that the
 * GPU did not take, or could not make. Takes over what it made. Returns the rows. */
static uint32_t choose(struct afd_device *device, const struct afd_op *op, int is_copied)
{
    struct afd_cuda *cuda = device->state;
    const struct afd_cuda_slot *s = &cuda->slots[op->slot];
    uint32_t pitch = cuda->sizes.vocab_pitch, left = 0;
    for (uint32_t i = 0, taken = 0; i < count_of(op, s); i++) {
        const struct afd_choice *choice = &op->sample.choices[s->choice_begin + i];
        struct afd_chosen *out = &op->sample.chosen_out[s->choice_begin + i];
        const struct afd_gpu_chosen *made = gpu_takes(device, choice) ? &s->chosen[taken++] : NULL;
        float *here = device->logits + (uint64_t)choice->logit_row * pitch;
        if (made && made->is_chosen) {
            *out = made->chosen;
            continue;
        }
        left++;
        if (is_copied)
            afd_sampler_choose(device->sampler, 0, afd_ref_softmax_terms, here, choice, out);
        else
            afd_gpu_copy(cuda->gpu, here, cuda->logits + (uint64_t)choice->logit_row * pitch,
                         pitch * sizeof(float));
    }
    return left;
}

static enum afd_status pending(struct afd_cuda *cuda, uint32_t stream, uint64_t *token)
{
    enum afd_status status = afd_cuda_mark(cuda, stream, token);
    return status ? status : AFD_PENDING;
}

enum afd_status afd_cuda_sample_more(struct afd_device *device, const struct afd_op *op, uint64_t *token)
{
    struct afd_cuda *cuda = device->state;
    struct afd_cuda_slot *s = &cuda->slots[op->slot];
    if (cuda->logits_taken && cuda->logits_taken != op->slot + 1) return AFD_PENDING;
    afd_cuda_use(device, op->slot);
    uint32_t rows = choose(device, op, s->has_copied);
    cuda->logits_taken = 0;
    if (rows && !s->has_copied) {
        s->has_copied = 1;
        cuda->logits_taken = op->slot + 1;
        return pending(cuda, op->slot, token);
    }
    s->choice_begin += count_of(op, s);
    if (s->choice_begin == op->sample.count) return AFD_OK;
    enum afd_status status = launch(device, op);
    return status ? status : pending(cuda, op->slot, token);
}
