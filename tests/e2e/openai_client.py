"""The openai package against a running 2A2F cluster, streaming and not.

    openai_client.py BIN_DIR SOURCE_DIR
"""
import json, pathlib, re, subprocess, sys, tempfile

import openai

bin_dir, source = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve()


def completions(client, model):
    r = client.completions.create(model=model, prompt="ROMEO:\n", max_tokens=16, temperature=0, logprobs=2, echo=False)
    assert r.object == "text_completion" and r.choices[0].finish_reason == "length", r
    assert r.usage.completion_tokens == 16 and r.usage.total_tokens == r.usage.prompt_tokens + 16, r.usage
    lp = r.choices[0].logprobs
    assert len(lp.tokens) == len(lp.token_logprobs) == len(lp.top_logprobs) == 16, lp
    assert "".join(lp.tokens) == r.choices[0].text and all(x <= 0 for x in lp.token_logprobs), lp
    parts = list(client.completions.create(model=model, prompt="ROMEO:\n", max_tokens=16, temperature=0, stream=True,
                                           stream_options={"include_usage": True}))
    text = "".join(p.choices[0].text for p in parts if p.choices)
    assert text == r.choices[0].text, (text, r.choices[0].text)
    assert len(parts) > 3, "a stream in one piece is no stream"
    assert parts[-1].usage.completion_tokens == 16 and not parts[-1].choices, parts[-1]
    many = client.completions.create(model=model, prompt=["A", "B"], n=2, max_tokens=4, seed=1)
    assert [c.index for c in many.choices] == [0, 1, 2, 3], many
    ids = client.completions.create(model=model, prompt=[40, 41, 42], max_tokens=1, echo=True, logprobs=0)
    assert ids.choices[0].logprobs.token_logprobs[0] is None and len(ids.choices[0].logprobs.tokens) == 4, ids
    stop = client.completions.create(model=model, prompt="ROMEO:\n", max_tokens=64, temperature=0,
                                     stop=[r.choices[0].text[5:8]])
    assert stop.choices[0].finish_reason == "stop", stop
    assert stop.choices[0].text == r.choices[0].text[: r.choices[0].text.index(r.choices[0].text[5:8])], stop


def chat(client, model):
    messages = [{"role": "system", "content": "Verona. A public place."}, {"role": "user", "content": "Who goes there?"}]
    r = client.chat.completions.create(model=model, messages=messages, max_tokens=12, temperature=0.5, seed=3,
                                       logprobs=True, top_logprobs=2)
    again = client.chat.completions.create(model=model, messages=messages, max_tokens=12, temperature=0.5, seed=3)
    message = r.choices[0].message
    assert message.role == "assistant" and message.content == again.choices[0].message.content, (r, again)
    assert r.choices[0].logprobs.content and len(r.choices[0].logprobs.content[0].top_logprobs) == 2, r
    pieces = list(client.chat.completions.create(model=model, messages=messages, max_tokens=12, temperature=0.5, seed=3,
                                                 stream=True))
    assert pieces[0].choices[0].delta.role == "assistant", pieces[0]
    assert "".join(p.choices[0].delta.content or "" for p in pieces) == message.content
    assert pieces[-1].choices[0].finish_reason in ("length", "stop"), pieces[-1]


def errors(client, model):
    for kind, call in [
        (openai.BadRequestError, lambda: client.completions.create(model=model, prompt="x", temperature=-1)),
        (openai.BadRequestError, lambda: client.completions.create(model=model, prompt="x " * 5000, max_tokens=1)),
        (openai.NotFoundError, lambda: client.completions.create(model="no-such-model", prompt="x")),
        (openai.BadRequestError, lambda: client.chat.completions.create(model=model, messages=[])),
    ]:
        try:
            call()
        except kind as e:
            assert e.body and e.body["message"], e
        else:
            raise AssertionError(f"{kind.__name__} was expected")


def main():
    with tempfile.TemporaryDirectory(prefix="afd-test-") as folder:
        folder = pathlib.Path(folder)
        text = (source / "deploy/topologies/2a2f-local.yaml").read_text()
        text = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:0", text).replace("../../model/nano", str(source / "model/nano"))
        (folder / "topology.yaml").write_text(text)
        state = ["--state", str(folder / "state")]
        subprocess.run([bin_dir / "afd", "up", folder / "topology.yaml", *state], check=True)
        try:
            http = json.loads((folder / "state/scheduler.json").read_text())["http"]
            client = openai.OpenAI(base_url=f"http://{http}/v1", api_key="none", max_retries=0, timeout=60)
            model = client.models.list().data[0].id
            completions(client, model)
            chat(client, model)
            errors(client, model)
        finally:
            subprocess.run([bin_dir / "afd", "down", *state], check=True)
    print("openai", openai.__version__, "works: completions, chat, streams, errors")


main()
