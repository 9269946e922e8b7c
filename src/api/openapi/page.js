
'use strict';
// The page knows the API by its own address, so that it works behind any prefix.
const here = location.pathname.replace(/\/+$/, '');
const base = here.replace(/\/api$/, '');
const byId = (id) => document.getElementById(id);

function element(name, attributes, ...children) {
  const made = document.createElement(name);
  Object.assign(made, attributes);
  made.append(...children);
  return made;
}

// What a reference stands for, some levels deep.
function resolve(whole, value, depth = 0) {
  if (Array.isArray(value)) return value.map((item) => resolve(whole, item, depth));
  if (value === null || typeof value !== 'object') return value;
  if (value.$ref && depth < 6) {
    const target = value.$ref.split('/').slice(1).reduce((at, key) => at[key], whole);
    return resolve(whole, target, depth + 1);
  }
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, resolve(whole, item, depth)]));
}

function since(described) {
  return described['x-since'] ? [element('span', { className: 'since', textContent: 'since ' + described['x-since'] })] : [];
}

function kind(schema) {
  const type = Array.isArray(schema.type) ? schema.type.join(' or ') : schema.type || '';
  return [type, schema.format, schema.pattern].filter(Boolean).join(', ');
}

function fields(schema) {
  const rows = Object.entries(schema.properties || {}).map(([name, field]) => element('tr', {},
    element('td', {}, element('code', { textContent: name }), ...since(field)),
    element('td', { textContent: kind(field) }),
    element('td', { textContent: [(schema.required || []).includes(name) ? 'Required.' : '', field.description || ''].join(' ').trim() })));
  return rows.length ? [element('table', {}, ...rows)] : [element('pre', { textContent: JSON.stringify(schema, null, 2) })];
}

function tryIt(path, method, operation) {
  const inputs = operation.parameters.filter((parameter) => parameter.in !== 'header').map((parameter) => {
    const input = element('input', { placeholder: parameter.in, spellcheck: false });
    return { parameter, input };
  });
  const content = (operation.requestBody || {}).content || {};
  const body = content['application/json'] ? element('textarea', { rows: 5, value: '{}', spellcheck: false }) : null;
  const answer = element('pre', { hidden: true });
  const send = element('button', { textContent: 'Send' });
  send.addEventListener('click', async () => {
    let url = path;
    const query = new URLSearchParams();
    for (const { parameter, input } of inputs) {
      if (parameter.in === 'path') url = url.replace(`{${parameter.name}}`, encodeURIComponent(input.value));
      else if (input.value !== '') query.append(parameter.name, input.value);
    }
    const headers = {};
    if (byId('token').value) headers['X-Auth-Token'] = byId('token').value;
    if (byId('version').value) headers['OpenStack-API-Version'] = byId('version').value;
    if (body) headers['Content-Type'] = 'application/json';
    answer.hidden = false;
    answer.textContent = 'Waiting.';
    try {
      const asked = query.size ? `${url}?${query}` : url;
      const got = await fetch(base + asked, { method: method.toUpperCase(), headers, body: body ? body.value : undefined });
      let text = await got.text();
      try { text = JSON.stringify(JSON.parse(text), null, 2); } catch { /* No JSON: shown as it is. */ }
      answer.textContent = `${got.status} ${got.statusText}\n\n${text.slice(0, 100000)}`;
    } catch (error) {
      answer.textContent = String(error);
    }
  });
  return [
    element('h3', { textContent: 'Try it' }),
    ...inputs.map(({ parameter, input }) => element('label', {}, parameter.name, input)),
    ...(body ? [element('label', {}, 'body', body)] : []),
    send,
    answer,
  ];
}

function show(path, method, operation) {
  const inside = element('div', {});
  const whole = element('details', {},
    element('summary', {}, element('b', { textContent: method.toUpperCase() }), element('code', { textContent: path }), ' ',
      operation.summary, ...since(operation)),
    inside);
  // Made when it is opened: there are many.
  whole.addEventListener('toggle', () => {
    if (inside.childElementCount) return;
    if (operation.description) inside.append(element('p', { textContent: operation.description }));
    if (operation.parameters.length) {
      inside.append(element('h3', { textContent: 'Parameters' }), element('table', {}, ...operation.parameters.map((parameter) =>
        element('tr', {},
          element('td', {}, element('code', { textContent: parameter.name }), ...since(parameter)),
          element('td', { textContent: `${parameter.in}, ${kind(parameter.schema)}` }),
          element('td', { textContent: parameter.description || '' })))));
    }
    for (const [type, { schema }] of Object.entries((operation.requestBody || {}).content || {})) {
      inside.append(element('h3', { textContent: `Body, ${type}` }), ...fields(schema));
    }
    inside.append(element('h3', { textContent: 'Answers' }));
    for (const [status, response] of Object.entries(operation.responses)) {
      inside.append(element('p', {}, element('b', { textContent: status }), ' ' + response.description));
      const json = ((response.content || {})['application/json'] || {}).schema;
      if (json && status < 400) inside.append(...fields(json));
    }
    if (!operation.requestBody || operation.requestBody.content['application/json']) {
      inside.append(...tryIt(path, method, operation));
    }
  });
  return whole;
}

async function read() {
  byId('document').href = `${here}/openapi.json`;
  const api = await (await fetch(`${here}/openapi.json`)).json();
  byId('title').textContent = `${api.info.title} ${api.info.version}`;
  byId('about').textContent = api.info.description;
  const tags = {};
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      (tags[operation.tags[0]] ||= []).push(show(path, method, resolve(api, operation)));
    }
  }
  for (const [tag, shown] of Object.entries(tags)) {
    byId('operations').append(element('section', {}, element('h2', { textContent: tag }), ...shown));
  }
}

read().catch((error) => { byId('about').textContent = `The description cannot be read: ${error}`; });
