'use strict';
// One page, no library. Text from outside goes through textContent and attributes alone, never into markup.
const STAGES = ['compute', 'group', 'send', 'wait', 'bubble', 'idle'];
const SVG = 'http://www.w3.org/2000/svg';
const $ = id => document.getElementById(id);

function element(tag, attributes, ...children) {
  const e = document.createElement(tag);
  for (const name in attributes || {}) e.setAttribute(name, attributes[name]);
  e.append(...children);
  return e;
}
function shape(tag, attributes, text) {
  const e = document.createElementNS(SVG, tag);
  for (const name in attributes) e.setAttribute(name, attributes[name]);
  if (text !== undefined) e.textContent = text;
  return e;
}
async function get(path) {
  const answer = await fetch(path, {cache: 'no-store'});
  if (!answer.ok) throw new Error(path + ' answered ' + answer.status);
  return answer.json();
}
const grouped = n => Math.round(n).toLocaleString('en-US');
function compact(n) {
  if (n >= 1e9) return (n / 1e9).toPrecision(3) + 'G';
  if (n >= 1e6) return (n / 1e6).toPrecision(3) + 'M';
  if (n >= 1e4) return (n / 1e3).toPrecision(3) + 'k';
  return grouped(n);
}
function duration(seconds) {
  if (seconds === null || seconds === undefined) return '–';
  return seconds < 1 ? (seconds * 1e3).toPrecision(3) + ' ms' : seconds.toPrecision(3) + ' s';
}
function age(seconds) {
  if (seconds < 100) return Math.round(seconds) + ' s ago';
  if (seconds < 6000) return Math.round(seconds / 60) + ' min ago';
  return Math.round(seconds / 3600) + ' h ago';
}

// ---- the cluster: GET /afd/v1/cluster

let cluster = null;
const spent = new Map(); // a rank's time by stage, as its last two reports said

// Shares of a rank's time by stage between its last two reports; it may have made none since the last look.
function shares(rank) {
  const key = [rank.role, rank.rank, rank.pid].join(' '), now = STAGES.map(s => rank.stages_s[s]);
  const last = spent.get(key);
  if (!last || now.some((n, i) => n !== last.now[i])) spent.set(key, {before: last ? last.now : now.map(() => 0), now});
  const since = now.map((n, i) => Math.max(0, n - spent.get(key).before[i])), sum = since.reduce((a, b) => a + b, 0);
  return since.map(s => sum > 0 ? s / sum : 0);
}

function drawRank(rank) {
  const isLost = rank.state === 'lost', share = isLost ? STAGES.map(() => 0) : shares(rank);
  const bar = element('div', {class: 'bar', title: STAGES.map((s, i) => `${s} ${(100 * share[i]).toFixed(1)}%`).join(', ')});
  STAGES.forEach((stage, i) => {
    const part = element('div', {class: stage});
    part.style.width = 100 * share[i] + '%';
    bar.append(part);
  });
  const more = element('span', {class: 'more dim'});
  const slow = cluster.stragglers.find(s => s.role === rank.role && s.rank === rank.rank);
  if (slow) more.append(element('span', {class: 'bad', title: slow.words}, `straggler: ${slow.score.toFixed(1)} times as slow at ${slow.stage}, by its ${slow.cause} · `));
  if (rank.state !== 'ready') more.append(element('span', {class: 'bad'}, rank.state + (rank.reason ? ': ' + rank.reason : '') + ' · '));
  if (rank.role === 'attn') {
    const kv = rank.kv_blocks ? ` · KV ${(100 * rank.kv_blocks_used / rank.kv_blocks).toFixed(0)}%` : '';
    more.append(`${rank.running} running, ${rank.waiting} waiting${kv}`);
  } else {
    more.append('shards ' + (rank.shards.join(', ') || 'none'));
  }
  return element('div', {class: 'rank'}, `${rank.role}/${rank.rank}`, bar,
    element('span', {class: 'number'}, isLost ? '–' : (100 * share[0]).toFixed(0) + '%'), more);
}

function drawPool(role, words) {
  const ranks = cluster.ranks.filter(r => r.role === role), pool = element('div', {class: 'pool'});
  pool.append(element('h3', null, `${words}: ${ranks.length} rank${ranks.length === 1 ? '' : 's'}`));
  for (const instance of [...new Set(ranks.map(r => r.instance))]) {
    const own = ranks.filter(r => r.instance === instance);
    const hosts = [...new Set(own.map(r => r.host))].join(', ');
    pool.append(element('div', {class: 'instance'},
      element('h4', null, `${role === 'attn' ? 'A' : 'F'}${instance} on ${hosts}`), ...own.map(drawRank)));
  }
  return pool;
}

function drawCluster() {
  const c = cluster;
  document.title = $('title').textContent = c.cluster;
  $('state').textContent = c.state === 'ready' && c.degraded ? 'degraded' : c.state;
  $('state').className = 'chip ' + (c.state === 'ready' && !c.degraded ? 'good' : c.degraded ? 'bad' : '');
  $('facts').textContent = `model ${c.model} · epoch ${c.epoch} · up ${age(c.uptime_s).replace(' ago', '')} · afd ${c.version}`;
  say(c.degraded);
  $('topology').replaceChildren(drawPool('attn', 'Attention'), drawPool('ffn', 'FFN'));
  const table = element('table', null, element('tr', null, element('th', null, 'shard'), element('th', null, 'FFN instances, preferred first')));
  for (const p of c.placement)
    table.append(element('tr', null, element('td', null, p.shard), element('td', null, p.instances.map(i => 'F' + i).join(', ') || 'nowhere')));
  const words = element('p', {class: 'dim'}, `load of the busiest instance over the mean: ${c.imbalance.toFixed(2)}`);
  const changes = [c.change, c.own_change].filter(x => x).map(x =>
    element('p', null, `${x.kind}: ${x.phase}, ${age(x.since_s)}${x.words ? ': ' + x.words : ''}`));
  $('placement').replaceChildren(words, table, ...changes);
}

function say(words) {
  $('alert').textContent = words || '';
  $('alert').hidden = !words;
}

function drawLegend() {
  for (const s of STAGES) $('stage-legend').append(element('i', {class: s}), s);
}

// ---- the last minutes: GET /afd/v1/history

const SHOWN = 300;
const past = {count: 0, values: {}};

async function takeHistory() {
  const h = await get('/afd/v1/history?from=' + past.count);
  if (h.count < past.count || h.from > past.count) past.values = {};
  for (const key in h.values) past.values[key] = (past.values[key] || []).concat(h.values[key]).slice(-SHOWN);
  past.count = h.count;
}

const last = key => {
  const row = past.values[key] || [];
  for (let i = row.length - 1; i >= 0; i--) if (row[i] !== null) return row[i];
  return null;
};

function drawTiles() {
  const r = cluster.requests;
  const tiles = [
    ['tokens/s', grouped(last('generated_tokens_per_s') || 0)], ['prompt/s', grouped(last('prompt_tokens_per_s') || 0)],
    ['running', grouped(r.running)], ['waiting', grouped(r.waiting)], ['finished', compact(r.finished)],
    ['first token p50', duration(last('first_token_p50_s'))], ['next token p50', duration(last('inter_token_p50_s'))],
    ['KV in use', (100 * (last('kv_ratio') || 0)).toFixed(0) + '%']];
  $('tiles').replaceChildren(...tiles.map(([name, value]) =>
    element('div', {class: 'tile'}, element('span', {class: 'dim'}, name), element('b', null, value))));
}

// 1, 2 or 5 times a power of ten, not below x
function roundUp(x) {
  const power = 10 ** Math.floor(Math.log10(x));
  return [1, 2, 5, 10].map(k => k * power).find(k => k >= x * 0.999);
}

// From 0 to a round number.
function linear(values) {
  const limit = roundUp(Math.max(1, ...values));
  return {ticks: [0, limit / 2, limit], share: v => v / limit};
}
// Powers of ten: what is usual and the worst one are far apart.
function logarithmic(values) {
  const seen = values.filter(v => v > 0), low = seen.length ? Math.floor(Math.log10(Math.min(...seen))) : 0;
  const high = Math.max(low + 1, seen.length ? Math.ceil(Math.log10(Math.max(...seen))) : 0), ticks = [];
  for (let power = low; power <= high; power++) ticks.push(10 ** power);
  return {ticks, share: v => Math.max(0, (Math.log10(Math.max(v, 1e-12)) - low) / (high - low))};
}

// rows: [[class, key, factor, name]]
function drawChart(id, scaleOf, rows) {
  const svg = $(id), width = svg.clientWidth || 320, height = 150, left = 40, top = 8, bottom = 30;
  const scale = scaleOf(rows.flatMap(([, key, factor]) => (past.values[key] || []).map(v => (v || 0) * factor)));
  const y = v => top + (height - top - bottom) * (1 - scale.share(v));
  const x = (i, count) => width - 4 - (count - 1 - i) * (width - left - 4) / (SHOWN - 1);
  const parts = [];
  for (const tick of scale.ticks) {
    parts.push(shape('line', {class: 'grid', x1: left, x2: width - 4, y1: y(tick), y2: y(tick)}));
    parts.push(shape('text', {x: left - 5, y: y(tick) + 4, 'text-anchor': 'end'}, axis(tick)));
  }
  parts.push(shape('text', {x: left, y: height - 16}, SHOWN / 60 + ' min ago'), shape('text', {x: width - 4, y: height - 16, 'text-anchor': 'end'}, 'now'));
  let at = left;
  for (const [kind, key, factor, name] of rows) {
    const values = past.values[key] || [];
    let path = '', pen = 'M';
    values.forEach((v, i) => {
      if (v === null) { pen = 'M'; return; }
      path += `${pen}${x(i, values.length).toFixed(1)} ${y(v * factor).toFixed(1)}`;
      if (pen === 'M') path += 'h0.1';
      pen = 'L';
    });
    if (path) parts.push(shape('path', {class: kind, d: path, 'stroke-linecap': 'round'}));
    if (!name) continue;
    parts.push(shape('text', {x: at, y: height - 2, class: kind}, name));
    at += 8 + name.length * 6.2;
  }
  svg.setAttribute('viewBox', `0 0 ${width} ${height}`);
  svg.replaceChildren(...parts);
}
function axis(n) {
  if (n >= 1000) return compact(n);
  return n === 0 ? '0' : String(+n.toPrecision(2));
}

function drawCharts() {
  drawChart('throughput', linear, [['one', 'generated_tokens_per_s', 1, 'generated'], ['two', 'prompt_tokens_per_s', 1, 'prompt']]);
  drawChart('latency', logarithmic, [['one', 'first_token_p50_s', 1e3, 'first token'], ['one-p99', 'first_token_p99_s', 1e3],
    ['two', 'inter_token_p50_s', 1e3, 'between tokens (dashed: p99)'], ['two-p99', 'inter_token_p99_s', 1e3]]);
  drawChart('sequences', linear, [['one', 'running', 1, 'running'], ['two', 'waiting', 1, 'waiting']]);
}

// ---- events: GET /afd/v1/events

function drawEvents(list) {
  $('events').replaceChildren(...list.slice().reverse().map(e =>
    element('li', null, element('span', {class: 'dim'}, age(e.age_s)), element('span', {class: e.bad ? 'bad' : ''}, e.words))));
  if (!list.length) $('events').append(element('li', null, 'none yet'));
}

// ---- experts: GET /afd/v1/experts; a cell's rows against the mean of its layer, since the last look

let expertsBefore = {};

function drawExperts(layers) {
  const canvas = $('experts'), rows = [];
  for (const {layer, rows: all} of layers) {
    const old = expertsBefore[layer] || [];
    let since = all.map((n, i) => n - (old[i] || 0));
    if (since.some(n => n < 0) || !since.some(n => n > 0)) since = all;
    rows.push([layer, since]);
  }
  expertsBefore = Object.fromEntries(layers.map(l => [l.layer, l.rows]));
  if (!rows.length) {
    $('experts-words').textContent = 'The model has no layers of experts.';
    return;
  }
  const most = Math.max(...rows.map(r => r[1].length));
  const cell = Math.max(3, Math.min(26, Math.floor((canvas.parentElement.clientWidth - 34) / most)));
  const tall = Math.max(5, Math.min(26, Math.floor(260 / rows.length))), scale = window.devicePixelRatio || 1;
  const style = getComputedStyle(document.documentElement), heat = style.getPropertyValue('--heat');
  const width = 34 + most * cell, height = rows.length * tall;
  canvas.width = width * scale;
  canvas.height = height * scale;
  canvas.style.width = width + 'px';
  canvas.style.height = height + 'px';
  const g = canvas.getContext('2d');
  g.scale(scale, scale);
  g.font = '10px system-ui, sans-serif';
  let worst = [0, 0, 0];
  rows.forEach(([layer, counts], r) => {
    const mean = counts.reduce((a, b) => a + b, 0) / counts.length;
    counts.forEach((n, e) => {
      const load = mean > 0 ? n / mean : 0;
      if (load > worst[0]) worst = [load, layer, e];
      g.fillStyle = `rgba(${heat}, ${Math.min(1, 0.06 + load / 3)})`;
      g.fillRect(34 + e * cell, r * tall, cell - 1, tall - 1);
    });
    if (tall >= 10 || r % Math.ceil(10 / tall) === 0) {
      g.fillStyle = style.getPropertyValue('--dim');
      g.fillText('L' + layer, 0, r * tall + Math.min(tall, 13) - 3);
    }
  });
  $('experts-words').textContent = !worst[0] ? 'no rows yet' : `rows of an expert against the mean of its layer; the busiest: ${worst[0].toFixed(2)} times, ` +
    `layer ${worst[1]}, expert ${worst[2]}`;
}

// ---- the pipeline: a short trace, GET /afd/v1/trace

const WINDOW_S = 0.25, EVENTS_EACH = 600, SPAN_US = 12000;
let paused = false, traced = null;

// Where the picture is taken from: the span of time in which most messages were sent.
function busiest(starts, span) {
  let best = 0, most = 0;
  for (let i = 0, k = 0; i < starts.length; i++) {
    while (starts[i] - starts[k] > span) k++;
    if (i - k + 1 > most) [most, best] = [i - k + 1, starts[k]];
  }
  return best;
}

// Some steps a thousand pixels: short enough to see a layer.
function spanOf(events, width) {
  const logits = events.filter(e => e.ph === 'X' && e.name.startsWith('logits')).map(e => e.ts).sort((a, b) => a - b);
  if (logits.length < 4) return SPAN_US;
  return Math.min(200000, Math.max(500, width / 160 * (logits[logits.length - 1] - logits[0]) / (logits.length - 1)));
}

const colourOf = e => e.name.startsWith('to ') || e.name.startsWith('from ') ? 'send' :
  STAGES.includes(e.name) ? e.name : 'compute';

function lanesOf(events) {
  const lanes = new Map();
  for (const e of events)
    if (e.ph === 'M' && e.name === 'process_name' && e.args.name !== 'scheduler') lanes.set(e.pid, {name: e.args.name, pid: e.pid});
  return [...lanes.values()];
}

function drawGantt() {
  const svg = $('gantt'), events = traced.traceEvents;
  const flows = new Map(), starts = [];
  for (const e of events) {
    if (e.cat !== 'message') continue;
    if (!flows.has(e.id)) flows.set(e.id, []);
    flows.get(e.id).push(e);
    if (e.ph === 's') starts.push(e.ts);
  }
  if (!starts.length) {
    $('gantt-words').textContent = 'Nothing is in flight' + (svg.firstChild ? '; the last steps that were:' : '.');
    return;
  }
  starts.sort((a, b) => a - b);
  const lanes = lanesOf(events), left = 74, tall = 32, width = svg.parentElement.clientWidth, height = lanes.length * tall + 22;
  const span = spanOf(events, width), from = busiest(starts, span), to = from + span;
  const x = t => left + (t - from) / span * (width - left - 8), middle = pid => lanes.findIndex(l => l.pid === pid) * tall + 15;
  const parts = [];
  lanes.forEach((lane, i) => {
    parts.push(shape('text', {x: 0, y: i * tall + 18, class: 'lane'}, lane.name.split(' on ')[0]));
    parts.push(shape('rect', {class: 'idle', x: left, y: i * tall + 3, width: width - left - 8, height: tall - 8}));
  });
  // What a device did; messages over it; where it waited it is as it was.
  for (const order of [['wait', 'bubble', 'group'], ['compute'], ['send']])
    for (const e of events) {
      if (e.ph !== 'X' || e.ts + e.dur < from || e.ts > to || /^(layer|out,|submit|take|idle)/.test(e.name)) continue;
      const kind = colourOf(e), lane = lanes.findIndex(l => l.pid === e.pid);
      if (!order.includes(kind) || lane < 0) continue;
      const a = Math.max(left, x(e.ts)), b = Math.min(width - 8, x(e.ts + e.dur));
      const box = shape('rect', {class: kind, x: a.toFixed(1), y: lane * tall + (kind === 'send' ? 17 : 3),
        width: Math.max(0.8, b - a).toFixed(1), height: kind === 'send' ? 10 : tall - 8});
      box.append(shape('title', {}, `${e.name}, ${e.dur.toFixed(0)} us` + (e.args && e.args.rows ? `, ${e.args.rows} rows` : '')));
      parts.push(box);
    }
  for (const flow of flows.values()) {
    flow.sort((a, b) => a.ts - b.ts);
    if (flow.length !== 4 || flow[0].ts < from || flow[3].ts > to) continue;
    const line = (kind, a, b) => parts.push(shape('line', {class: kind, x1: x(a.ts).toFixed(1), y1: middle(a.pid), x2: x(b.ts).toFixed(1), y2: middle(b.pid)}));
    line('a2f', flow[0], flow[1]);
    line('f2a', flow[2], flow[3]);
  }
  for (let k = 0; k <= 4; k++)
    parts.push(shape('text', {x: x(from + span * k / 4), y: height - 4, 'text-anchor': k === 0 ? 'start' : k === 4 ? 'end' : 'middle'},
      (span * k / 4000).toFixed(1) + ' ms'));
  svg.setAttribute('width', width);
  svg.setAttribute('height', height);
  svg.replaceChildren(...parts);
  $('gantt-words').textContent = `${(span / 1e3).toFixed(1)} ms of the last trace: what each device did, messages to the FFN (blue) and back (orange); ` +
    `clocks agree to ${traced.otherData.clock_error_us.toFixed(0)} us`;
}

async function takeTrace() {
  if (paused || document.hidden) return;
  try {
    traced = await get(`/afd/v1/trace?seconds=${WINDOW_S}&events=${EVENTS_EACH}`);
    drawGantt();
  } catch (error) {
    if (!traced) $('gantt-words').textContent = 'Another trace is being taken.';
  }
}

// ---- the loop

async function look() {
  try {
    cluster = await get('/afd/v1/cluster');
    drawCluster();
    await takeHistory();
    drawTiles();
    drawCharts();
    drawEvents((await get('/afd/v1/events')).events);
    drawExperts((await get('/afd/v1/experts')).layers);
  } catch (error) {
    say('no answer from the scheduler: ' + error.message);
  }
}

function every(ms, work) {
  const turn = async () => {
    if (!document.hidden) await work();
    // Other pages look too: not all at one time.
    setTimeout(turn, ms * (0.9 + 0.2 * Math.random()));
  };
  turn();
}

$('pause').addEventListener('click', () => {
  paused = !paused;
  $('pause').textContent = paused ? 'go on' : 'pause';
});
window.addEventListener('resize', () => {
  if (!cluster) return;
  drawCharts();
  if (traced) drawGantt();
});
drawLegend();
every(2000, look);
every(4000, takeTrace);
