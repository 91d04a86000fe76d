#!/usr/bin/env node
'use strict';

/*
 * Does a CouchDB, embedded or real, behave as the module expects? Prints TAP.
 *
 *   node util/couch/conformance.js http://user:password@127.0.0.1:5984
 *   VIBE_COUCHDB_URL=http://user:password@127.0.0.1:5984 node util/couch/conformance.js
 *
 * What is expected here is what Apache CouchDB 3.5 does. All databases are named
 * vibe-test-conformance-…, and are deleted at the end; no other is touched.
 */

const assert = require('assert/strict');

const url = new URL(process.argv[2] || process.env.VIBE_COUCHDB_URL || 'http://127.0.0.1:5984');
const origin = url.origin;
const credentials = `${decodeURIComponent(url.username)}:${decodeURIComponent(url.password)}`;
const run = `${process.pid}-${Date.now()}`;
const created = new Set();
let count = 0;
let failures = 0;

// ---- tools ----------------------------------------------------------------------------------

/** One line of TAP. */
async function check(name, test) {
  count++;
  try {
    await test();
    console.log(`ok ${count} - ${name}`);
  } catch (error) {
    failures++;
    console.log(`not ok ${count} - ${name}`);
    console.log(String(error.stack || error).replace(/^/gm, '# '));
  }
}

const isRaw = (body) =>
  body === undefined || typeof body === 'string' || Buffer.isBuffer(body);

/**
 * One request.
 * @param {object} [options] `headers`; `auth`, null for none; `signal`
 * @returns {Promise<Response>}
 */
function send(method, path, body, { headers = {}, auth = credentials, signal } = {}) {
  const all = { accept: 'application/json', ...headers };
  if (auth !== null) all.authorization = `Basic ${Buffer.from(auth).toString('base64')}`;
  if (body !== undefined && !all['content-type']) all['content-type'] = 'application/json';
  return fetch(origin + path, {
    method, signal, headers: all, body: isRaw(body) ? body : JSON.stringify(body),
  });
}

/** One request and its whole answer. */
async function ask(method, path, body, options) {
  const response = await send(method, path, body, options);
  const text = await response.text();
  let json;
  try { json = JSON.parse(text); } catch (e) { /* it is none */ }
  return { status: response.status, headers: response.headers, text, json };
}

/** One request whose answer has to have this status. */
async function want(status, method, path, body, options) {
  const answer = await ask(method, path, body, options);
  assert.equal(answer.status, status, `${method} ${path}: ${answer.text.slice(0, 300)}`);
  return answer;
}

/** One request that has to fail in this way. */
async function wantError(status, error, method, path, body, options) {
  const answer = await want(status, method, path, body, options);
  assert.equal(answer.json.error, error, answer.text.slice(0, 300));
  assert.equal(typeof answer.json.reason, 'string');
  return answer;
}

/** Makes a database and gives its path. */
async function database(name) {
  const full = `vibe-test-conformance-${name}-${run}`;
  created.add(full);
  await want(201, 'PUT', `/${full}?q=1`);
  return `/${full}`;
}

const enc = encodeURIComponent;
const hash = (letter) => letter.repeat(32);
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const ids = (docs) => docs.map((doc) => doc._id).sort().join(' ');
const bulk = (db, docs, more) => want(201, 'POST', `${db}/_bulk_docs`, { docs, ...more })
  .then((answer) => answer.json);
const find = (db, body) => want(200, 'POST', `${db}/_find`, body).then((answer) => answer.json);
const bulkGet = (db, docs, query = '') => want(200, 'POST', `${db}/_bulk_get${query}`, { docs })
  .then((answer) => answer.json.results);
const allDocs = (db, keys, query = '') => want(200, 'POST', `${db}/_all_docs${query}`, { keys })
  .then((answer) => answer.json.rows);
const changes = (db, query = '') => want(200, 'GET', `${db}/_changes${query}`)
  .then((answer) => answer.json);

/** Reads a live answer until `enough(text)` or until the time is over. */
async function readLive(method, path, body, enough, act = async () => {}, ms = 8000) {
  const controller = new AbortController();
  const timer = setTimeout(() => controller.abort(), ms);
  let text = '';
  let ended = false;
  let response;
  try {
    response = await send(method, path, body, { signal: controller.signal });
    const reader = response.body.getReader();
    const acted = act();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) { ended = true; break; }
      text += Buffer.from(value).toString();
      if (enough(text)) break;
    }
    await acted;
  } catch (error) {
    if (error.name !== 'AbortError') throw error;
  } finally {
    clearTimeout(timer);
    controller.abort();
  }
  return { text, ended, headers: response && response.headers };
}

const jsonLines = (text) => text.split('\n').filter((line) => line.trim())
  .map((line) => JSON.parse(line));

// ---- the server -----------------------------------------------------------------------------

async function testServer() {
  await check('GET / welcomes', async () => {
    const { json } = await want(200, 'GET', '/');
    assert.equal(json.couchdb, 'Welcome');
    assert.equal(typeof json.version, 'string');
  });
  await check('GET /_up', async () => {
    assert.equal((await want(200, 'GET', '/_up')).json.status, 'ok');
  });
  await check('no credentials: 401', () =>
    wantError(401, 'unauthorized', 'GET', '/_all_dbs', undefined, { auth: null }));
  await check('wrong credentials: 401', () =>
    wantError(401, 'unauthorized', 'GET', '/_all_dbs', undefined, { auth: `nobody-${run}:x` }));
  await check('answers are application/json', async () => {
    const { headers } = await want(200, 'GET', '/_all_dbs');
    assert.match(headers.get('content-type'), /^application\/json/);
  });
}

// ---- databases ------------------------------------------------------------------------------

async function testDatabases() {
  const name = `vibe-test-conformance-dbs-${run}`;
  const db = `/${name}`;
  created.add(name);
  await check('PUT /db?q=1', async () => {
    const { json, headers } = await want(201, 'PUT', `${db}?q=1`);
    assert.deepEqual(json, { ok: true });
    assert.ok(headers.get('location').endsWith(db));
  });
  await check('PUT /db again: 412', () => wantError(412, 'file_exists', 'PUT', `${db}?q=1`));
  await check('GET /db', async () => {
    const { json } = await want(200, 'GET', db);
    assert.equal(json.db_name, name);
    assert.equal(json.doc_count, 0);
    assert.match(json.update_seq, /^0-./);
    for (const key of ['doc_del_count', 'sizes', 'purge_seq', 'compact_running', 'cluster',
      'disk_format_version', 'instance_start_time', 'props']) assert.ok(key in json, key);
  });
  await check('HEAD /db', () => want(200, 'HEAD', db));
  await check('GET of no database: 404', async () => {
    const { json } = await wantError(404, 'not_found', 'GET', `${db}-none`);
    assert.equal(json.reason, 'Database does not exist.');
  });
  await check('a request inside no database: 404', () =>
    wantError(404, 'not_found', 'POST', `${db}-none/_bulk_docs`, { docs: [] }));
  for (const bad of [`${db}-Upper`, `/1${name}`, `/_${name}`, `${db}%20x`]) {
    await check(`PUT ${bad.replace(run, '…')}: 400`, () =>
      wantError(400, 'illegal_database_name', 'PUT', bad));
  }
  await check('a name with a slash', async () => {
    created.add(`${name}/sub`);
    await want(201, 'PUT', `${db}%2Fsub?q=1`);
    await want(201, 'PUT', `${db}%2Fsub/a`, {});
    const { json } = await want(200, 'GET', `${db}%2Fsub`);
    assert.equal(json.db_name, `${name}/sub`);
    assert.equal(json.doc_count, 1);
  });
  await check('GET /_all_dbs', async () => {
    const { json } = await want(200, 'GET', '/_all_dbs');
    assert.ok(json.includes(name) && json.includes(`${name}/sub`));
    assert.deepEqual(json, [...json].sort());
  });
  await check('GET /_all_dbs with a range', async () => {
    const range = `startkey=${enc(JSON.stringify(name))}&endkey=${enc(JSON.stringify(name))}`;
    assert.deepEqual((await want(200, 'GET', `/_all_dbs?${range}`)).json, [name]);
  });
  await check('POST /_dbs_info', async () => {
    const { json } = await want(200, 'POST', '/_dbs_info', { keys: [name, `${name}-none`] });
    assert.equal(json[0].key, name);
    assert.match(json[0].info.update_seq, /^0-./);
    assert.deepEqual(json[1], { key: `${name}-none`, error: 'not_found' });
  });
  await check('GET and PUT /db/_security', async () => {
    assert.equal(typeof (await want(200, 'GET', `${db}/_security`)).json, 'object');
    const security = { admins: { names: [], roles: ['a'] }, members: { names: [], roles: ['b'] } };
    assert.deepEqual((await want(200, 'PUT', `${db}/_security`, security)).json, { ok: true });
    assert.deepEqual((await want(200, 'GET', `${db}/_security`)).json, security);
  });
  await check('DELETE /db', async () => {
    await want(201, 'PUT', `${db}/a`, { v: 1 });
    assert.deepEqual((await want(200, 'DELETE', db)).json, { ok: true });
    await wantError(404, 'not_found', 'GET', db);
    await wantError(404, 'not_found', 'DELETE', db);
  });
  await check('a database made anew is empty', async () => {
    await want(201, 'PUT', `${db}?q=1`);
    assert.equal((await want(200, 'GET', db)).json.doc_count, 0);
    await wantError(404, 'not_found', 'GET', `${db}/a`);
  });
}

// ---- one document ---------------------------------------------------------------------------

async function testDocuments() {
  const db = await database('docs');
  let first;
  let second;
  await check('PUT of a document', async () => {
    const { json, headers } = await want(201, 'PUT', `${db}/a`, { v: 1 });
    assert.equal(json.id, 'a');
    assert.match(json.rev, /^1-[0-9a-f]{32}$/);
    assert.equal(headers.get('etag'), `"${json.rev}"`);
    assert.ok(headers.get('location').endsWith(`${db}/a`));
    first = json.rev;
  });
  await check('GET of a document', async () => {
    const { json, headers } = await want(200, 'GET', `${db}/a`);
    assert.deepEqual(json, { _id: 'a', _rev: first, v: 1 });
    assert.equal(headers.get('etag'), `"${first}"`);
  });
  await check('If-None-Match: 304', () =>
    want(304, 'GET', `${db}/a`, undefined, { headers: { 'if-none-match': `"${first}"` } }));
  await check('PUT without _rev over a document: 409', async () => {
    const { json } = await wantError(409, 'conflict', 'PUT', `${db}/a`, { v: 2 });
    assert.equal(json.reason, 'Document update conflict.');
  });
  await check('PUT with ?rev=, with If-Match, with _rev', async () => {
    second = (await want(201, 'PUT', `${db}/a?rev=${first}`, { v: 2 })).json.rev;
    assert.match(second, /^2-/);
    const third = (await want(201, 'PUT', `${db}/a`, { v: 3 },
      { headers: { 'if-match': `"${second}"` } })).json.rev;
    assert.match(third, /^3-/);
    assert.match((await want(201, 'PUT', `${db}/a`, { _rev: third, v: 4 })).json.rev, /^4-/);
  });
  await check('PUT with a stale _rev: 409', () =>
    wantError(409, 'conflict', 'PUT', `${db}/a`, { _rev: second, v: 9 }));
  await check('GET of an older revision', async () => {
    assert.equal((await want(200, 'GET', `${db}/a?rev=${second}`)).json.v, 2);
    await wantError(404, 'not_found', 'GET', `${db}/a?rev=9-${hash('f')}`);
    await wantError(400, 'bad_request', 'GET', `${db}/a?rev=junk`);
  });
  await check('GET ?revs=true', async () => {
    const { json } = await want(200, 'GET', `${db}/a?revs=true`);
    assert.equal(json._revisions.start, 4);
    assert.deepEqual(json._revisions.ids.slice(2), [second, first].map((rev) => rev.slice(2)));
  });
  await check('GET ?open_revs=', async () => {
    const all = (await want(200, 'GET', `${db}/a?open_revs=all`)).json;
    assert.equal(all.length, 1);
    assert.equal(all[0].ok.v, 4);
    const none = `9-${hash('f')}`;
    const some = (await want(200, 'GET',
      `${db}/a?open_revs=${enc(JSON.stringify([first, none]))}`)).json;
    assert.equal(some[0].ok.v, 1);
    assert.deepEqual(some[1], { missing: none });
  });
  for (const id of ['did:web:x.example:p%3A1', 'a/b c', 'p+q', 'héé漢😀']) {
    await check(`an id "${id}"`, async () => {
      assert.equal((await want(201, 'PUT', `${db}/${enc(id)}`, {})).json.id, id);
      assert.equal((await want(200, 'GET', `${db}/${enc(id)}`)).json._id, id);
    });
  }
  await check('an id with an underscore first: 400', () =>
    wantError(400, 'illegal_docid', 'PUT', `${db}/_bad`, {}));
  await check('an unknown member with an underscore first: 400', () =>
    wantError(400, 'doc_validation', 'PUT', `${db}/b`, { _foo: 1 }));
  const notJson = Buffer.from('{"a":"\xff"}', 'latin1');
  for (const [what, body] of [['an array', []], ['half', '{"a":'], ['bad UTF-8', notJson]]) {
    await check(`a body that is ${what}: 400`, () =>
      wantError(400, 'bad_request', 'PUT', `${db}/b`, body));
  }
  await check('a document above 8,000,000 bytes: 413', () =>
    wantError(413, 'document_too_large', 'PUT', `${db}/b`, { x: 'x'.repeat(8000001) }));
  await check('none of these was written', () => wantError(404, 'not_found', 'GET', `${db}/b`));
  await check('POST /db makes an id', async () => {
    assert.match((await want(201, 'POST', db, { v: 1 })).json.id, /^[0-9a-f]{32}$/);
  });
  await check('POST /db with another type: 415', () =>
    wantError(415, 'bad_content_type', 'POST', db, '{}',
      { headers: { 'content-type': 'text/plain' } }));
  await check('DELETE of a document', async () => {
    const { rev } = (await want(201, 'PUT', `${db}/gone`, { v: 1 })).json;
    await wantError(409, 'conflict', 'DELETE', `${db}/gone`);
    assert.match((await want(200, 'DELETE', `${db}/gone?rev=${rev}`)).json.rev, /^2-/);
    assert.equal((await wantError(404, 'not_found', 'GET', `${db}/gone`)).json.reason, 'deleted');
  });
  await check('GET of no document: 404', async () => {
    const { json } = await wantError(404, 'not_found', 'GET', `${db}/none`);
    assert.equal(json.reason, 'missing');
  });
  await check('a method that is none: 405', () =>
    wantError(405, 'method_not_allowed', 'PATCH', `${db}/a`, {}));
}

async function testLocalDocuments() {
  const db = await database('local');
  const before = (await want(200, 'GET', db)).json.update_seq;
  await check('GET of no local document: 404', () =>
    wantError(404, 'not_found', 'GET', `${db}/_local/x`));
  await check('PUT and GET of a local document', async () => {
    const { json } = await want(201, 'PUT', `${db}/_local/x`, { v: 1 });
    assert.deepEqual(json, { ok: true, id: '_local/x', rev: '0-1' });
    assert.deepEqual((await want(200, 'GET', `${db}/_local/x`)).json,
      { _id: '_local/x', _rev: '0-1', v: 1 });
  });
  await check('PUT with its _rev counts on', async () => {
    const { json } = await want(201, 'PUT', `${db}/_local/x`, { _rev: '0-1', v: 2 });
    assert.equal(json.rev, '0-2');
  });
  await check('local documents know no conflict: a stale _rev overwrites', async () => {
    await want(201, 'PUT', `${db}/_local/x`, { _rev: '0-1', v: 3 });
    await want(201, 'PUT', `${db}/_local/x`, { v: 4 });
    assert.equal((await want(200, 'GET', `${db}/_local/x`)).json.v, 4);
  });
  await check('local documents move no sequence and are in no list', async () => {
    assert.equal((await want(200, 'GET', db)).json.update_seq, before);
    assert.deepEqual((await changes(db)).results, []);
    assert.deepEqual((await want(200, 'GET', `${db}/_all_docs`)).json.rows, []);
  });
  await check('DELETE of a local document', async () => {
    const { rev } = { rev: (await want(200, 'GET', `${db}/_local/x`)).json._rev };
    assert.equal((await want(200, 'DELETE', `${db}/_local/x?rev=${rev}`)).json.ok, true);
    await wantError(404, 'not_found', 'GET', `${db}/_local/x`);
    await wantError(404, 'not_found', 'DELETE', `${db}/_local/x?rev=${rev}`);
  });
}

// ---- _bulk_docs -----------------------------------------------------------------------------

async function testBulkDocs() {
  const db = await database('bulk');
  await check('_bulk_docs has a row for each document', async () => {
    await bulk(db, [{ _id: 'old', v: 1 }]);
    const rows = await bulk(db, [{ _id: 'a', v: 1 }, { _id: 'old', v: 2 }, { v: 3 }]);
    assert.equal(rows.length, 3);
    assert.equal(rows[0].ok, true);
    assert.equal(rows[0].id, 'a');
    assert.match(rows[0].rev, /^1-/);
    assert.deepEqual(rows[1],
      { id: 'old', error: 'conflict', reason: 'Document update conflict.' });
    assert.match(rows[2].id, /^[0-9a-f]{32}$/);
  });
  await check('the same id twice: the second is a conflict', async () => {
    const rows = await bulk(db, [{ _id: 'twice', v: 1 }, { _id: 'twice', v: 2 }]);
    assert.equal(rows[0].ok, true);
    assert.equal(rows[1].error, 'conflict');
    assert.equal((await want(200, 'GET', `${db}/twice`)).json.v, 1);
  });
  await check('an update and a deletion of one revision: one is a conflict', async () => {
    const [{ rev }] = await bulk(db, [{ _id: 'both', v: 1 }]);
    const rows = await bulk(db, [{ _id: 'both', _rev: rev, v: 2 },
      { _id: 'both', _rev: rev, _deleted: true }]);
    assert.equal(rows.filter((row) => row.error === 'conflict').length, 1);
    assert.equal(rows.filter((row) => row.ok).length, 1);
  });
  // CouchDB looks at it or not, as a shard has just been opened or been written to.
  await check('a _rev of a document that is not there: a conflict, or goes on', async () => {
    const [row] = await bulk(db, [{ _id: 'never', _rev: `1-${hash('a')}`, v: 1 }]);
    assert.ok(row.error === 'conflict' || /^2-/.test(row.rev), JSON.stringify(row));
  });
  await check('no documents', async () => assert.deepEqual(await bulk(db, []), []));
  for (const [what, body] of [['without docs', {}], ['with docs no array', { docs: 'x' }],
    ['with new_edits no boolean', { docs: [], new_edits: 0 }]]) {
    await check(`_bulk_docs ${what}: 400`, () =>
      wantError(400, 'bad_request', 'POST', `${db}/_bulk_docs`, body));
  }
  const before = (await want(200, 'GET', db)).json.update_seq;
  await check('an illegal id fails the whole request', () =>
    wantError(400, 'illegal_docid', 'POST', `${db}/_bulk_docs`,
      { docs: [{ _id: 'w1' }, { _id: '_w2' }] }));
  await check('an unknown _member fails the whole request', () =>
    wantError(400, 'doc_validation', 'POST', `${db}/_bulk_docs`,
      { docs: [{ _id: 'w1' }, { _id: 'w2', _foo: 1 }] }));
  await check('one document above 8,000,000 bytes fails the whole request', () =>
    wantError(413, 'document_too_large', 'POST', `${db}/_bulk_docs`,
      { docs: [{ _id: 'w1' }, { _id: 'w2', x: 'x'.repeat(8000001) }] }));
  await check('a stub of no attachment fails the whole request', async () => {
    const { status } = await ask('POST', `${db}/_bulk_docs`, {
      docs: [{ _id: 'w1' }, { _id: 'w2', _attachments: { x: { stub: true } } }] });
    assert.ok(status >= 400 && status < 600, `status ${status}`);
  });
  await check('… and then nothing was written', async () => {
    assert.equal((await want(200, 'GET', db)).json.update_seq, before);
    await wantError(404, 'not_found', 'GET', `${db}/w1`);
  });
}

async function testTombstones() {
  const db = await database('tombs');
  let tomb;
  await check('a deletion of what is not there makes a tombstone', async () => {
    const [row] = await bulk(db, [{ _id: 't', _deleted: true, why: 'withdrawn', n: [1] }]);
    assert.equal(row.ok, true);
    assert.match(row.rev, /^1-/);
    tomb = row.rev;
    assert.equal((await wantError(404, 'not_found', 'GET', `${db}/t`)).json.reason, 'deleted');
  });
  await check('a tombstone keeps its members, and _bulk_get gives them', async () => {
    const expected = { _id: 't', _rev: tomb, _deleted: true, why: 'withdrawn', n: [1] };
    assert.deepEqual((await want(200, 'GET', `${db}/t?rev=${tomb}`)).json, expected);
    assert.deepEqual(await bulkGet(db, [{ id: 't', rev: tomb }, { id: 't' }]), [
      { id: 't', docs: [{ ok: expected }] }, { id: 't', docs: [{ ok: expected }] }]);
  });
  await check('_all_docs with keys shows its revision, but no body', async () => {
    const rows = await allDocs(db, ['t'], '?include_docs=true&conflicts=true');
    assert.deepEqual(rows,
      [{ id: 't', key: 't', value: { rev: tomb, deleted: true }, doc: null }]);
    assert.deepEqual((await want(200, 'GET', `${db}/_all_docs`)).json.rows, []);
  });
  await check('_changes shows it as deleted, with its body', async () => {
    const { results } = await changes(db, '?include_docs=true');
    assert.equal(results.length, 1);
    assert.equal(results[0].deleted, true);
    assert.equal(results[0].doc.why, 'withdrawn');
  });
  await check('a write with the _rev of a tombstone is a conflict', async () => {
    const rows = await bulk(db, [{ _id: 't', _rev: tomb, v: 1 }]);
    assert.equal(rows[0].error, 'conflict');
    const again = await bulk(db, [{ _id: 't', _rev: tomb, _deleted: true, why: 'other' }]);
    assert.equal(again[0].error, 'conflict');
  });
  await check('a deletion without _rev over a tombstone is a conflict', async () => {
    assert.equal((await bulk(db, [{ _id: 't', _deleted: true, v: 2 }]))[0].error, 'conflict');
  });
  await check('a write without _rev over a tombstone goes on from it', async () => {
    const [row] = await bulk(db, [{ _id: 't', v: 1 }]);
    assert.match(row.rev, /^2-/);
    const { json } = await want(200, 'GET', `${db}/t?revs=true`);
    assert.deepEqual(json._revisions, { start: 2, ids: [row.rev.slice(2), tomb.slice(2)] });
    assert.equal(json.v, 1);
  });
  await check('a deletion with _rev keeps the members it brings', async () => {
    const { _rev } = (await want(200, 'GET', `${db}/t`)).json;
    const [row] = await bulk(db, [{ _id: 't', _rev, _deleted: true, readers: ['x'] }]);
    assert.match(row.rev, /^3-/);
    const [{ docs }] = await bulkGet(db, [{ id: 't' }]);
    assert.deepEqual(docs[0].ok.readers, ['x']);
    assert.equal(docs[0].ok._deleted, true);
  });
  await check('a stale _rev below a tombstone is a conflict', async () => {
    assert.equal((await bulk(db, [{ _id: 't', _rev: tomb, v: 5 }]))[0].error, 'conflict');
  });
}

/** Indexes a member `v` and gives a function that finds, by it, the ids of documents. */
async function indexed(db) {
  await want(200, 'POST', `${db}/_index`, { index: { fields: ['v'] }, ddoc: 'v', name: 'v' });
  return async () => {
    const { docs } = await find(db, { selector: { v: { $gt: null } }, sort: ['v'], limit: 100 });
    return ids(docs);
  };
}

async function testEditsAtOnce() {
  const db = await database('edits');
  const byIndex = await indexed(db);
  await check('two edits of one document in one _bulk_docs, a stale one first', async () => {
    const [{ rev: one }] = await bulk(db, [{ _id: 'a', v: 'one' }]);
    const [{ rev: two }] = await bulk(db, [{ _id: 'a', _rev: one, v: 'two' }]);
    assert.equal(await byIndex(), 'a');
    const rows = await bulk(db, [{ _id: 'a', _rev: one, v: 'stale' },
      { _id: 'a', _rev: two, _deleted: true }]);
    assert.equal(rows[0].error, 'conflict');
    assert.equal(rows[1].ok, true);
    assert.match(rows[1].rev, /^3-/);
  });
  await check('… and then it is deleted, and an index answers', async () => {
    const { json } = await wantError(404, 'not_found', 'GET', `${db}/a`);
    assert.equal(json.reason, 'deleted');
    assert.equal(await byIndex(), '');
    await bulk(db, [{ _id: 'b', v: 1 }]);
    assert.equal(await byIndex(), 'b');
  });
  await check('24 writers at once on 5 documents leave indexes working', async () => {
    const names = ['p', 'q', 'r', 's', 't'];
    const write = async (writer, round) => {
      const _id = names[(writer + round) % names.length];
      const [row] = await allDocs(db, [_id]);
      const rev = row.value && !row.value.deleted ? { _rev: row.value.rev } : {};
      const doc = (writer + round) % 3 ? { v: `${writer} ${round}` } : { _deleted: true };
      const [result] = await bulk(db, [{ _id, ...rev, ...doc }]);
      assert.ok(result.ok || result.error === 'conflict', JSON.stringify(result));
      if (round % 4 === 0) await byIndex();
    };
    await Promise.all(Array.from({ length: 24 }, async (_, writer) => {
      for (let round = 0; round < 10; round++) await write(writer, round);
    }));
    const live = (await allDocs(db, names)).filter((row) => row.value && !row.value.deleted);
    assert.equal(await byIndex(), ['b', ...live.map((row) => row.id)].sort().join(' '));
    const rows = await bulk(db, live.map((row) => ({
      _id: row.id, _rev: row.value.rev, _deleted: true })));
    assert.ok(rows.every((row) => row.ok), JSON.stringify(rows));
    assert.equal(await byIndex(), 'b');
  });
}

async function testRevsLimit() {
  const db = await database('limit');
  const history = async (id) =>
    (await want(200, 'GET', `${db}/${id}?revs=true`)).json._revisions.ids.length;
  const edit = async (id, times) => {
    for (let i = 0; i < times; i++) {
      const [row] = await allDocs(db, [id]);
      await bulk(db, [{ _id: id, v: i, ...(row.value && { _rev: row.value.rev }) }]);
    }
  };
  await check('_revs_limit is 1000 at first', async () => {
    assert.equal((await want(200, 'GET', `${db}/_revs_limit`)).json, 1000);
    await edit('a', 8);
    assert.equal(await history('a'), 8);
  });
  await check('a smaller _revs_limit is obeyed', async () => {
    assert.deepEqual((await want(200, 'PUT', `${db}/_revs_limit`, '5')).json, { ok: true });
    assert.equal((await want(200, 'GET', `${db}/_revs_limit`)).json, 5);
    await edit('b', 8);
    assert.equal(await history('b'), 5);
    await edit('a', 1);
    assert.equal(await history('a'), 5);
    const { json } = await want(200, 'GET', `${db}/b`);
    assert.match(json._rev, /^8-/);
  });
  await check('… also while it is written to', async () => {
    await Promise.all([...['c', 'd', 'e'].map((id) => edit(id, 6)),
      want(200, 'PUT', `${db}/_revs_limit`, '3')]);
    await edit('c', 1);
    assert.equal(await history('c'), 3);
  });
}

/** A revision as replication sends it: generations named by letters, newest first. */
function replicated(id, letters, members = {}) {
  const list = letters.split('').map(hash);
  return {
    _id: id, _rev: `${list.length}-${list[0]}`, _revisions: { start: list.length, ids: list },
    ...members,
  };
}

async function testReplicatedWrites() {
  const db = await database('repl');
  const put = (doc) => bulk(db, [doc], { new_edits: false });
  await check('new_edits:false keeps the revision and answers []', async () => {
    assert.deepEqual(await put(replicated('r', 'cba', { v: 'c' })), []);
    const { json } = await want(200, 'GET', `${db}/r?revs=true`);
    assert.equal(json._rev, `3-${hash('c')}`);
    assert.deepEqual(json._revisions.ids, ['c', 'b', 'a'].map(hash));
  });
  await check('the same again changes nothing', async () => {
    const before = (await want(200, 'GET', db)).json.update_seq;
    assert.deepEqual(await put(replicated('r', 'cba', { v: 'c' })), []);
    assert.equal((await want(200, 'GET', db)).json.update_seq, before);
  });
  await check('an ancestor changes nothing', async () => {
    await put(replicated('r', 'ba', { v: 'b' }));
    const { json } = await want(200, 'GET', `${db}/r?conflicts=true`);
    assert.equal(json.v, 'c');
    assert.equal(json._conflicts, undefined);
  });
  await check('another branch is a conflict, and the higher revision wins', async () => {
    await put(replicated('r', 'dba', { v: 'd' }));
    const { json } = await want(200, 'GET', `${db}/r?conflicts=true`);
    assert.equal(json._rev, `3-${hash('d')}`);
    assert.deepEqual(json._conflicts, [`3-${hash('c')}`]);
  });
  await check('_all_docs shows _conflicts in the document', async () => {
    const [row] = await allDocs(db, ['r'], '?include_docs=true&conflicts=true');
    assert.deepEqual(row.doc._conflicts, [`3-${hash('c')}`]);
  });
  await check('_bulk_get without a revision gives all leaves', async () => {
    const [{ docs }] = await bulkGet(db, [{ id: 'r' }]);
    assert.deepEqual(docs.map((doc) => doc.ok.v).sort(), ['c', 'd']);
  });
  await check('_bulk_get?latest=true follows a revision to its leaves', async () => {
    const [{ docs }] = await bulkGet(db, [{ id: 'r', rev: `2-${hash('b')}` }],
      '?latest=true&revs=true');
    assert.deepEqual(docs.map((doc) => doc.ok.v).sort(), ['c', 'd']);
    assert.equal(docs[0].ok._revisions.start, 3);
  });
  await check('_changes shows the winner, or with style=all_docs all leaves', async () => {
    const main = await changes(db);
    assert.deepEqual(main.results[0].changes, [{ rev: `3-${hash('d')}` }]);
    const all = await changes(db, '?style=all_docs');
    assert.deepEqual(all.results[0].changes.map((one) => one.rev).sort(),
      [`3-${hash('c')}`, `3-${hash('d')}`]);
  });
  await check('_revs_diff', async () => {
    const { json } = await want(200, 'POST', `${db}/_revs_diff`, {
      r: [`3-${hash('c')}`, `2-${hash('b')}`, `4-${hash('e')}`], none: [`1-${hash('a')}`] });
    assert.deepEqual(json.r.missing, [`4-${hash('e')}`]);
    assert.deepEqual(json.none.missing, [`1-${hash('a')}`]);
  });
  await check('when the winner ends, the other branch is the document', async () => {
    await put(replicated('r', 'fdba', { _deleted: true }));
    assert.equal((await want(200, 'GET', `${db}/r`)).json.v, 'c');
  });
  await check('when all have ended, it is deleted', async () => {
    await put(replicated('r', 'ecba', { _deleted: true, why: 'e' }));
    assert.equal((await wantError(404, 'not_found', 'GET', `${db}/r`)).json.reason, 'deleted');
    const [{ docs }] = await bulkGet(db, [{ id: 'r' }]);
    assert.equal(docs.length, 2);
    assert.ok(docs.every((doc) => doc.ok._deleted));
  });
  await check('new_edits:false without a revision: 400', () =>
    wantError(400, 'bad_request', 'POST', `${db}/_bulk_docs`,
      { new_edits: false, docs: [{ _id: 'x' }] }));
  await check('PUT ?new_edits=false', async () => {
    const doc = replicated('p', 'ba', { v: 1 });
    assert.equal((await want(201, 'PUT', `${db}/p?new_edits=false`, doc)).json.rev, doc._rev);
  });
}

async function testAttachments() {
  const db = await database('atts');
  const data = Buffer.from('hello').toString('base64');
  const content_type = 'application/octet-stream';
  let rev;
  await check('an attachment is written with its document', async () => {
    [{ rev }] = await bulk(db, [{ _id: 'a', _attachments: { 'x.bin': { content_type, data } } }]);
    const { _attachments: { 'x.bin': stub } } = (await want(200, 'GET', `${db}/a`)).json;
    assert.equal(stub.stub, true);
    assert.equal(stub.length, 5);
    assert.equal(stub.revpos, 1);
    assert.match(stub.digest, /^md5-/);
    assert.ok(!('data' in stub));
  });
  await check('GET of an attachment', async () => {
    const { text, headers } = await want(200, 'GET', `${db}/a/x.bin?rev=${rev}`);
    assert.equal(text, 'hello');
    assert.equal(headers.get('content-type'), content_type);
    await wantError(404, 'not_found', 'GET', `${db}/a/none`);
  });
  await check('a stub carries it on', async () => {
    const doc = (await want(200, 'GET', `${db}/a`)).json;
    const [row] = await bulk(db, [{ ...doc, v: 2 }]);
    assert.equal(row.ok, true);
    const { json } = await want(200, 'GET', `${db}/a?attachments=true`);
    assert.equal(json._attachments['x.bin'].data, data);
    assert.equal(json._attachments['x.bin'].revpos, 1);
  });
  await check('_bulk_get?attachments=true has the bytes', async () => {
    const [{ docs }] = await bulkGet(db, [{ id: 'a' }], '?attachments=true&revs=true');
    assert.equal(docs[0].ok._attachments['x.bin'].data, data);
  });
}

// ---- reading many ---------------------------------------------------------------------------

async function testReading() {
  const db = await database('read');
  await bulk(db, ['a', 'b', 'c', 'd'].map((_id, i) => ({ _id, n: i })));
  await check('_all_docs', async () => {
    const { json } = await want(200, 'GET', `${db}/_all_docs`);
    assert.equal(json.total_rows, 4);
    assert.equal(json.offset, 0);
    assert.deepEqual(Object.keys(json.rows[0]).sort(), ['id', 'key', 'value']);
    assert.match(json.rows[0].value.rev, /^1-/);
  });
  const ranges = {
    'startkey="b"&limit=2': 'b c',
    'startkey="b"&endkey="c"': 'b c',
    'startkey="b"&endkey="c"&inclusive_end=false': 'b',
    'descending=true&startkey="c"&endkey="b"': 'c b',
    'descending=true&skip=1&limit=2': 'c b',
    'key="d"': 'd',
  };
  for (const [query, expected] of Object.entries(ranges)) {
    await check(`_all_docs?${query}`, async () => {
      const { json } = await want(200, 'GET', `${db}/_all_docs?${query.replaceAll('"', '%22')}`);
      assert.equal(json.rows.map((row) => row.id).join(' '), expected);
    });
  }
  await check('_all_docs with keys: in their order, unknown ones as errors', async () => {
    const rows = await allDocs(db, ['c', 'none', 'a'], '?include_docs=true');
    assert.equal(rows[0].doc.n, 2);
    assert.deepEqual(rows[1], { key: 'none', error: 'not_found' });
    assert.equal(rows[2].doc._id, 'a');
  });
  await check('_all_docs?limit=x: 400', () =>
    wantError(400, 'query_parse_error', 'GET', `${db}/_all_docs?limit=x`));
  await check('_bulk_get of what is not there', async () => {
    const rev = `1-${hash('a')}`;
    const [none, other] = await bulkGet(db, [{ id: 'none' }, { id: 'a', rev }], '?latest=true');
    assert.deepEqual(none.docs, [{ error: {
      id: 'none', rev: 'undefined', error: 'not_found', reason: 'missing' } }]);
    assert.equal(other.docs[0].error.error, 'not_found');
    assert.equal(other.docs[0].error.rev, rev);
  });
  await check('_bulk_get without docs: 400', () =>
    wantError(400, 'bad_request', 'POST', `${db}/_bulk_get`, {}));
}

// ---- selectors ------------------------------------------------------------------------------

const MATCHED = [
  { _id: 'a', n: 1, s: 'x', acl: 'public', tags: ['red', 'blue'], o: { k: 1, z: 'q' } },
  { _id: 'b', n: 2, s: 'y', acl: 'restricted', tags: ['blue'], readers: ['did:x:1'] },
  { _id: 'c', n: 3, s: 'x', acl: 'restricted', tags: [], readers: ['did:x:2', 'did:x:1'] },
  { _id: 'd', n: 4, s: null, acl: 'private', m: [{ q: 1, w: 2 }, { q: 2, w: 3 }] },
  { _id: 'e', n: '5', acl: 'public', denied: ['did:x:1'], 'x.y': 1 },
  { _id: 'f', n: 6, acl: 'public', o: { k: 2 } },
];
const reader = (did) => ({ readers: { $elemMatch: { $eq: did } } });

/** [selector, ids that match] */
const SELECTORS = [
  [{}, 'a b c d e f'],
  [{ n: 1 }, 'a'],
  [{ n: { $eq: '5' } }, 'e'],
  [{ n: { $ne: 1 } }, 'b c d e f'],
  [{ n: { $gt: 2 } }, 'c d e f'],
  [{ n: { $gt: 1, $lt: 3 } }, 'b'],
  [{ n: { $lte: 2 } }, 'a b'],
  [{ s: { $gte: null } }, 'a b c d'],
  [{ n: { $in: [1, '5', 9] } }, 'a e'],
  [{ tags: { $in: ['red', 'green'] } }, 'a'],
  [{ n: { $nin: [1, 2] } }, 'c d e f'],
  [{ readers: { $exists: true } }, 'b c'],
  [{ readers: { $exists: false } }, 'a d e f'],
  [{ s: { $type: 'null' } }, 'd'],
  [{ n: { $type: 'string' } }, 'e'],
  [{ tags: { $size: 0 } }, 'c'],
  [{ n: { $mod: [2, 0] } }, 'b d f'],
  [{ s: { $regex: '^x' } }, 'a c'],
  [{ _id: { $beginsWith: 'a' } }, 'a'],
  [{ tags: { $all: ['blue', 'red'] } }, 'a'],
  [{ tags: { $allMatch: { $eq: 'blue' } } }, 'b'],
  [{ o: { $keyMapMatch: { $eq: 'z' } } }, 'a'],
  [{ 'o.k': 2 }, 'f'],
  [{ o: { k: { $gte: 1 } } }, 'a f'],
  [{ 'x\\.y': 1 }, 'e'],
  [{ 'tags.0': 'red' }, 'a'],
  // arrays of strings and of objects
  [reader('did:x:1'), 'b c'],
  [reader('did:x:3'), ''],
  [{ m: { $elemMatch: { q: 2, w: 3 } } }, 'd'],
  [{ m: { $elemMatch: { q: 1, w: 3 } } }, ''],
  [{ tags: { $elemMatch: { $gte: 'r', $lt: 's' } } }, 'a'],
  [{ acl: { $elemMatch: { $eq: 'public' } } }, ''],
  // $and: conditions on one field must all hold, whatever the operators
  [{ $and: [{ n: 1 }, { n: 2 }] }, ''],
  [{ $and: [{ n: { $gt: 1 } }, { n: { $lt: 4 } }] }, 'b c'],
  [{ $and: [{ n: { $in: [1, 2] } }, { n: { $in: [2, 3] } }] }, 'b'],
  [{ $and: [{ s: { $regex: 'x' } }, { s: { $regex: 'y' } }] }, ''],
  [{ $and: [{ n: { $ne: 1 } }, { n: { $ne: 2 } }] }, 'c d e f'],
  [{ $and: [reader('did:x:1'), reader('did:x:2')] }, 'c'],
  [{ $and: [{ o: { k: 1 } }, { o: { k: 2 } }] }, ''],
  [{ $and: [{ acl: 'public' }, { $and: [{ acl: 'private' }] }] }, ''],
  // $and of two $or
  [{ $and: [{ $or: [{ n: 1 }, { n: 2 }] }, { $or: [{ n: 2 }, { n: 3 }] }] }, 'b'],
  [{ $and: [{ $or: [{ n: 1 }, { n: 2 }] }, { $or: [{ s: 'x' }, { s: 'y' }] }] }, 'a b'],
  [{ $and: [{ $or: [{ acl: 'public' }, reader('did:x:1')] },
    { $or: [{ s: 'x' }, { n: 2 }] }] }, 'a b c'],
  [{ $and: [{ $or: [{ acl: 'public' }, reader('did:x:3')] },
    { $or: [{ acl: 'restricted' }, { acl: 'private' }] }] }, ''],
  [{ $and: [{ $or: [{ n: 1 }] }, { $or: [{ n: 1 }, { n: 3 }] }, { $or: [{ s: 'x' }] }] }, 'a'],
  [{ $or: [{ n: 1 }, { n: 2 }], $and: [{ $or: [{ n: 2 }, { n: 3 }] }] }, 'b'],
  // $not and $nor
  [{ $not: { acl: 'public' } }, 'b c d'],
  [{ n: { $not: { $gt: 2 } } }, 'a b'],
  [{ $not: { $not: { n: 1 } } }, 'a'],
  [{ $or: [{ n: 1 }, { $not: { acl: 'public' } }] }, 'a b c d'],
  [{ $or: [{ $not: { n: { $lt: 4 } } }, reader('did:x:2')] }, 'c d e f'],
  [{ $not: { $or: [{ acl: 'public' }, { acl: 'private' }] } }, 'b c'],
  [{ $not: { $and: [{ acl: 'public' }, { n: { $lte: 4 } }] } }, 'b c d e f'],
  [{ $and: [{ $not: { n: 1 } }, { $not: { n: 2 } }] }, 'c d e f'],
  [{ $nor: [{ acl: 'public' }, { n: 2 }] }, 'c d'],
  [{ $and: [{ $nor: [{ n: 1 }] }, { $nor: [{ n: 2 }] }] }, 'c d e f'],
  [{ $and: [{ $nor: [{ n: 1 }, { n: 3 }] }, { $or: [{ s: 'x' }, { s: 'y' }] }] }, 'b'],
  [{ $or: [{ $nor: [{ n: { $gt: 1 } }] }, { $and: [{ n: 2 }, { $not: { s: 'x' } }] }] }, 'a b'],
  // a negated condition still asks for the field to be there
  [{ $nor: [{ s: 'x' }] }, 'b d'],
  [{ $not: { denied: { $elemMatch: { $eq: 'did:x:1' } } } }, ''],
  [{ $not: { readers: { $elemMatch: { $eq: 'did:x:2' } } } }, 'b'],
  [{ $not: { readers: { $exists: true } } }, 'a d e f'],
  // depth
  [{ $and: [{ $and: [{ n: { $gte: 1 } },
    { $or: [{ s: 'x' }, { $and: [{ acl: 'restricted' }, { n: 2 }] }] }] },
  { n: { $lte: 2 } }] }, 'a b'],
  // nothing to choose from
  [{ n: 1, $or: [] }, 'a'],
  [{ n: { $in: [] } }, ''],
];

async function testSelectors() {
  const db = await database('selectors');
  await bulk(db, MATCHED);
  for (const [selector, expected] of SELECTORS) {
    await check(`selector ${JSON.stringify(selector)}`, async () => {
      assert.equal(ids((await find(db, { selector })).docs), expected);
    });
  }
  await want(200, 'POST', `${db}/_index`, {
    index: { fields: ['acl', 'n'] }, ddoc: 'acl-n', name: 'acl-n', type: 'json' });
  await check('an index changes no answer', async () => {
    for (const [selector, expected] of SELECTORS) {
      const all = { $and: [{ acl: { $gte: null } }, { n: { $gte: null } }, selector] };
      if (!Object.keys(selector).length) continue;
      const { docs } = await find(db, { selector: all, use_index: ['acl-n', 'acl-n'] });
      assert.equal(ids(docs), expected, JSON.stringify(selector));
    }
  });
  await check('filter=_selector of _changes gives the same', async () => {
    for (const [selector, expected] of SELECTORS) {
      if (!Object.keys(selector).length) continue;
      const and = { $and: [{ acl: { $gte: null } }, selector] };
      const { json } = await want(200, 'POST', `${db}/_changes?filter=_selector`,
        { selector: and });
      assert.equal(json.results.map((row) => row.id).sort().join(' '), expected,
        JSON.stringify(selector));
    }
  });
  const wrong = {
    invalid_operator: { n: { $foo: 1 } },
    bad_arg: { n: { $in: 1 } },
    not_supported: { $where: 'x' },
  };
  for (const [error, selector] of Object.entries(wrong)) {
    await check(`selector ${JSON.stringify(selector)}: 400 ${error}`, () =>
      wantError(400, error, 'POST', `${db}/_find`, { selector }));
  }
  await check('_find without a selector: 400', () =>
    wantError(400, 'missing_required_key', 'POST', `${db}/_find`, {}));
  await check('_find with another type: 415', () =>
    wantError(415, 'bad_content_type', 'POST', `${db}/_find`, '{}',
      { headers: { 'content-type': 'text/plain' } }));
}

// ---- _find and indexes ----------------------------------------------------------------------

const POSTS = Array.from({ length: 60 }, (_, i) => ({
  _id: `p${String(i).padStart(2, '0')}`, collection: i % 2 ? 'posts' : 'likes', createdAt: i,
  access: i % 3 ? 'public' : 'restricted', deep: { a: i, b: 0 },
}));
const INDEX = {
  index: { fields: ['collection', 'createdAt'] }, ddoc: 'vibe', name: 'created', type: 'json',
};
const newestPosts = (more) => ({
  selector: { $and: [{ $or: [{ access: { $eq: 'public' } }, reader('did:x:1')] },
    { collection: { $eq: 'posts' } }, { createdAt: { $gte: null } }] },
  sort: [{ collection: 'desc' }, { createdAt: 'desc' }],
  use_index: ['vibe', 'created'],
  ...more,
});
const EXPECTED = POSTS.filter((doc) => doc.collection === 'posts' && doc.access === 'public')
  .map((doc) => doc._id).reverse();

async function testIndexes(db) {
  await bulk(db, POSTS.concat([{ _id: 'undated', collection: 'posts', access: 'public' }]));
  await check('a sort that no index serves: 400', () =>
    wantError(400, 'no_usable_index', 'POST', `${db}/_find`,
      { selector: { createdAt: { $gte: 0 } }, sort: ['createdAt'] }));
  await check('POST _index: created, then exists', async () => {
    const { json } = await want(200, 'POST', `${db}/_index`, INDEX);
    assert.deepEqual(json, { result: 'created', id: '_design/vibe', name: 'created' });
    assert.equal((await want(200, 'POST', `${db}/_index`, INDEX)).json.result, 'exists');
  });
  await check('GET _index lists it, after _all_docs', async () => {
    const { json } = await want(200, 'GET', `${db}/_index`);
    assert.equal(json.total_rows, 2);
    assert.equal(json.indexes[0].type, 'special');
    assert.equal(json.indexes[1].ddoc, '_design/vibe');
    assert.deepEqual(json.indexes[1].def.fields, [{ collection: 'asc' }, { createdAt: 'asc' }]);
  });
  await check('_design/…/_info tells when it is built', async () => {
    for (let tries = 0; ; tries++) {
      const { json } = await want(200, 'GET', `${db}/_design/vibe/_info`);
      assert.equal(json.name, 'vibe');
      assert.equal(typeof json.view_index.updater_running, 'boolean');
      assert.equal(typeof json.view_index.updates_pending.total, 'number');
      const { updater_running: running, updates_pending: pending } = json.view_index;
      if (!running && pending.total === 0) return;
      assert.ok(tries < 150, 'not built after 30 s');
      await sleep(200);
    }
  });
  await check('_find sorted by the index', async () => {
    const { docs, warning } = await find(db, newestPosts({ limit: 5 }));
    assert.deepEqual(docs.map((doc) => doc._id), EXPECTED.slice(0, 5));
    assert.equal(warning, undefined);
  });
  await check('a document without the field is not in the index', async () => {
    const { docs } = await find(db, newestPosts({ limit: 100 }));
    assert.deepEqual(docs.map((doc) => doc._id), EXPECTED);
  });
  await check('sorted upwards', async () => {
    const sort = [{ collection: 'asc' }, { createdAt: 'asc' }];
    const { docs } = await find(db, newestPosts({ limit: 5, sort }));
    assert.deepEqual(docs.map((doc) => doc._id), [...EXPECTED].reverse().slice(0, 5));
  });
  await check('sorted by the second field, the first being constant', async () => {
    const { docs } = await find(db, newestPosts({ limit: 5, sort: [{ createdAt: 'desc' }] }));
    assert.deepEqual(docs.map((doc) => doc._id), EXPECTED.slice(0, 5));
  });
  await check('_find sees what was written before it', async () => {
    const [{ rev }] = await bulk(db,
      [{ _id: 'new', collection: 'posts', createdAt: 1000, access: 'public' }]);
    assert.equal((await find(db, newestPosts({ limit: 1 }))).docs[0]._id, 'new');
    await bulk(db, [{ _id: 'new', _rev: rev, collection: 'posts', createdAt: -1,
      access: 'public' }]);
    const { docs } = await find(db, newestPosts({ limit: 100 }));
    assert.deepEqual(docs.map((doc) => doc._id), EXPECTED.concat('new'));
    const { _rev } = docs[docs.length - 1];
    await bulk(db, [{ _id: 'new', _rev, _deleted: true }]);
    assert.equal((await find(db, newestPosts({ limit: 100 }))).docs.length, EXPECTED.length);
  });
  await check('_explain names the index', async () => {
    const { json } = await want(200, 'POST', `${db}/_explain`, newestPosts());
    assert.equal(json.index.ddoc, '_design/vibe');
    assert.equal(json.index.name, 'created');
    assert.equal(json.limit, 25);
  });
  await check('use_index that is not there: a warning, and an answer', async () => {
    const { docs, warning } = await find(db, newestPosts({ limit: 5, use_index: ['no', 'such'] }));
    assert.deepEqual(docs.map((doc) => doc._id), EXPECTED.slice(0, 5));
    assert.match(warning, /_design\/no, such was not used/);
  });
  await check('use_index that cannot serve: a warning, and an answer', async () => {
    const { docs, warning } = await find(db,
      { selector: { 'deep.a': 7 }, use_index: ['vibe', 'created'] });
    assert.equal(ids(docs), 'p07');
    assert.match(warning, /_design\/vibe, created was not used/);
  });
  await check('no index: a warning, and an answer', async () => {
    const { docs, warning } = await find(db, { selector: { 'deep.a': { $lt: 2 } } });
    assert.equal(ids(docs), 'p00 p01');
    assert.match(warning, /No matching index found/);
  });
  await check('mixed directions: 400', () =>
    wantError(400, 'unsupported_mixed_sort', 'POST', `${db}/_find`,
      newestPosts({ sort: [{ collection: 'desc' }, { createdAt: 'asc' }] })));
}

async function testFindOptions(db) {
  await check('the limit is 25 unless told', async () => {
    assert.equal((await find(db, { selector: { collection: 'posts' } })).docs.length, 25);
  });
  await check('skip', async () => {
    const { docs } = await find(db, newestPosts({ limit: 3, skip: 4 }));
    assert.deepEqual(docs.map((doc) => doc._id), EXPECTED.slice(4, 7));
  });
  await check('fields, dotted ones too', async () => {
    const { docs } = await find(db, newestPosts({ limit: 1, fields: ['_id', 'deep.a', 'none'] }));
    assert.deepEqual(docs, [{ _id: 'p59', deep: { a: 59 } }]);
  });
  await check('execution_stats', async () => {
    const { execution_stats: stats } = await find(db,
      newestPosts({ limit: 4, execution_stats: true }));
    assert.equal(stats.results_returned, 4);
    assert.equal(typeof stats.total_docs_examined, 'number');
  });
  for (const [error, more] of [['invalid_key', { foo: 1 }], ['invalid_bookmark', { bookmark: 'x' }],
    ['invalid_non_neg_integer', { limit: -1 }]]) {
    await check(`_find with ${JSON.stringify(more)}: 400 ${error}`, () =>
      wantError(400, error, 'POST', `${db}/_find`, newestPosts(more)));
  }
  await check('no result has the bookmark nil', async () => {
    const { docs, bookmark } = await find(db, { selector: { collection: 'none' } });
    assert.deepEqual(docs, []);
    assert.equal(bookmark, 'nil');
  });
}

async function testBookmarks(db) {
  for (const direction of ['desc', 'asc']) {
    await check(`bookmarks, ${direction}: each document once, in order`, async () => {
      const sort = [{ collection: direction }, { createdAt: direction }];
      const seen = [];
      let bookmark;
      for (let page = 0; page < 20; page++) {
        const answer = await find(db, newestPosts({ limit: 7, sort, bookmark }));
        seen.push(...answer.docs.map((doc) => doc._id));
        if (!answer.docs.length) break;
        ({ bookmark } = answer);
      }
      assert.deepEqual(seen, direction === 'desc' ? EXPECTED : [...EXPECTED].reverse());
    });
  }
  await check('a bookmark stays where it is when others write before it', async () => {
    const first = await find(db, newestPosts({ limit: 5 }));
    const [{ rev }] = await bulk(db,
      [{ _id: 'later', collection: 'posts', createdAt: 2000, access: 'public' }]);
    const second = await find(db, newestPosts({ limit: 5, bookmark: first.bookmark }));
    assert.deepEqual(second.docs.map((doc) => doc._id), EXPECTED.slice(5, 10));
    await bulk(db, [{ _id: 'later', _rev: rev, _deleted: true }]);
  });
  await check('bookmarks without an index', async () => {
    const seen = [];
    let bookmark;
    for (let page = 0; page < 20; page++) {
      const answer = await find(db, { selector: { deep: { b: 0 } }, limit: 11, bookmark });
      seen.push(...answer.docs.map((doc) => doc._id));
      if (!answer.docs.length) break;
      ({ bookmark } = answer);
    }
    assert.deepEqual(seen.sort(), POSTS.map((doc) => doc._id));
  });
}

async function testPartialAndDeletedIndexes(db) {
  await check('a partial index is used only when it is named', async () => {
    await want(200, 'POST', `${db}/_index`, {
      index: { fields: ['createdAt'], partial_filter_selector: { access: 'public' } },
      ddoc: 'part', name: 'part', type: 'json' });
    const query = { selector: { createdAt: { $lt: 6 } }, sort: ['createdAt'] };
    await wantError(400, 'no_usable_index', 'POST', `${db}/_find`, query);
    const { docs } = await find(db, { ...query, use_index: ['part', 'part'] });
    assert.equal(ids(docs), 'p01 p02 p04 p05');
  });
  await check('DELETE of an index', async () => {
    const path = `${db}/_index/_design/part/json/part`;
    assert.deepEqual((await want(200, 'DELETE', path)).json, { ok: true });
    assert.equal((await want(200, 'GET', `${db}/_index`)).json.total_rows, 2);
    await wantError(404, 'not_found', 'DELETE', path);
  });
}

async function testFind() {
  const db = await database('find');
  await testIndexes(db);
  await testFindOptions(db);
  await testBookmarks(db);
  await testPartialAndDeletedIndexes(db);
}

// ---- _changes -------------------------------------------------------------------------------

async function testChanges() {
  const db = await database('changes');
  await bulk(db, [1, 2, 3, 4].map((n) => ({ _id: `d${n}`, n })));
  let last;
  await check('_changes: opaque sequences, oldest first', async () => {
    const answer = await changes(db);
    assert.deepEqual(answer.results.map((row) => row.id), ['d1', 'd2', 'd3', 'd4']);
    assert.match(answer.results[0].seq, /^1-./);
    assert.match(answer.results[0].changes[0].rev, /^1-/);
    assert.equal(answer.pending, 0);
    last = answer.last_seq;
    assert.match(last, /^4-./);
  });
  await check('since=, and since=now', async () => {
    const { results } = await changes(db);
    const rest = await changes(db, `?since=${enc(results[1].seq)}`);
    assert.deepEqual(rest.results.map((row) => row.id), ['d3', 'd4']);
    assert.deepEqual((await changes(db, `?since=${enc(last)}`)).results, []);
    const now = await changes(db, '?since=now&limit=0');
    assert.deepEqual(now.results, []);
    assert.match(now.last_seq, /^4-./);
  });
  await check('a sequence from GET /db is a good since', async () => {
    const { update_seq: seq } = (await want(200, 'GET', db)).json;
    await bulk(db, [{ _id: 'd5', n: 5 }]);
    assert.deepEqual((await changes(db, `?since=${enc(seq)}`)).results.map((r) => r.id), ['d5']);
  });
  for (const since of ['5', 'zzz']) {
    await check(`since=${since}: 400`, () => want(400, 'GET', `${db}/_changes?since=${since}`));
  }
  await check('limit, include_docs', async () => {
    const { results, pending } = await changes(db, '?limit=2&include_docs=true');
    assert.deepEqual(results.map((row) => row.doc.n), [1, 2]);
    assert.equal(pending, 3);
  });
  await check('descending', async () => {
    const { results } = await changes(db, '?descending=true&limit=2');
    assert.deepEqual(results.map((row) => row.id), ['d5', 'd4']);
  });
  await check('an update moves its document to the end', async () => {
    const { _rev } = (await want(200, 'GET', `${db}/d1`)).json;
    await bulk(db, [{ _id: 'd1', _rev, n: 11 }]);
    const { results } = await changes(db);
    assert.deepEqual(results.map((row) => row.id), ['d2', 'd3', 'd4', 'd5', 'd1']);
  });
  await check('filter=_selector', async () => {
    const { json } = await want(200, 'POST', `${db}/_changes?filter=_selector`,
      { selector: { n: { $gt: 3 } } });
    assert.deepEqual(json.results.map((row) => row.id), ['d4', 'd5', 'd1']);
  });
  await check('filter=_doc_ids, POST and GET', async () => {
    const { json } = await want(200, 'POST', `${db}/_changes?filter=_doc_ids`,
      { doc_ids: ['d2', 'd4'] });
    assert.deepEqual(json.results.map((row) => row.id).sort(), ['d2', 'd4']);
    const got = await changes(db, `?filter=_doc_ids&doc_ids=${enc('["d3"]')}`);
    assert.deepEqual(got.results.map((row) => row.id), ['d3']);
  });
  await check('a filter that is not there: 404', () =>
    wantError(404, 'not_found', 'GET', `${db}/_changes?filter=no/such`));
  await check('a feed that is none: 400', () =>
    wantError(400, 'bad_request', 'GET', `${db}/_changes?feed=foo`));
}

async function testLiveChanges() {
  const db = await database('live');
  await bulk(db, [{ _id: 'd1', n: 1 }]);
  const feed = (query, enough, act, ms) =>
    readLive('GET', `${db}/_changes?${query}`, undefined, enough, act, ms);
  const writeSoon = (doc) => async () => { await sleep(200); await bulk(db, [doc]); };
  await check('longpoll answers at once when there is something', async () => {
    const { text, ended } = await feed('feed=longpoll&since=0', () => false);
    assert.ok(ended);
    assert.equal(JSON.parse(text).results.length, 1);
  });
  await check('longpoll sends its beginning at once', async () => {
    const { text } = await feed('feed=longpoll&since=now', (t) => t.includes('['), undefined, 3000);
    assert.match(text, /^\{"results":\[/);
  });
  await check('longpoll wakes on a write', async () => {
    const { text, ended } = await feed('feed=longpoll&since=now', () => false,
      writeSoon({ _id: 'd2', n: 2 }));
    assert.ok(ended);
    const { results, last_seq: last } = JSON.parse(text);
    assert.deepEqual(results.map((row) => row.id), ['d2']);
    assert.match(last, /^2-/);
  });
  await check('longpoll ends after its timeout', async () => {
    const { text, ended } = await feed('feed=longpoll&since=now&timeout=500', () => false);
    assert.ok(ended);
    assert.deepEqual(JSON.parse(text).results, []);
  });
  await check('longpoll with a heartbeat stays, and beats', async () => {
    const { text, ended } = await feed('feed=longpoll&since=now&heartbeat=300',
      (t) => (t.match(/\n/g) || []).length >= 4, undefined, 5000);
    assert.ok(!ended);
    assert.ok((text.match(/\n/g) || []).length >= 4);
  });
  await check('continuous: the past, then what comes', async () => {
    const { text } = await feed('feed=continuous&since=0&heartbeat=1000',
      (t) => t.includes('"d3"'), writeSoon({ _id: 'd3', n: 3 }));
    assert.deepEqual(jsonLines(text).map((row) => row.id), ['d1', 'd2', 'd3']);
  });
  await check('continuous ends after its timeout with last_seq', async () => {
    const { text, ended } = await feed('feed=continuous&since=now&timeout=500', () => false);
    assert.ok(ended);
    assert.match(jsonLines(text).pop().last_seq, /^3-/);
  });
  await check('continuous ends at its limit', async () => {
    const { text, ended } = await feed('feed=continuous&since=0&limit=2', () => false);
    assert.ok(ended);
    assert.deepEqual(jsonLines(text).map((row) => row.id).slice(0, 2), ['d1', 'd2']);
  });
  await check('continuous with filter=_selector', async () => {
    const { text } = await readLive('POST',
      `${db}/_changes?feed=continuous&since=now&filter=_selector`, { selector: { n: 7 } },
      (t) => t.includes('"d7"'), async () => {
        await sleep(200);
        await bulk(db, [{ _id: 'd6', n: 6 }, { _id: 'd7', n: 7 }]);
      });
    assert.deepEqual(jsonLines(text).map((row) => row.id), ['d7']);
  });
  await check('eventsource', async () => {
    const { text, headers } = await feed('feed=eventsource&since=0', (t) => t.includes('"d7"'));
    assert.match(headers.get('content-type'), /^text\/event-stream/);
    const [first] = text.split('\n\n');
    const [data, id] = first.split('\n');
    assert.equal(JSON.parse(data.replace(/^data: /, '')).id, 'd1');
    assert.match(JSON.parse(id.replace(/^id: /, '')), /^1-/);
  });
  await check('twenty writes at once: each is told once', async () => {
    const docs = Array.from({ length: 20 }, (_, i) => ({ _id: `m${i}` }));
    const { text } = await feed('feed=continuous&since=now&heartbeat=1000',
      (t) => (t.match(/"m\d+"/g) || []).length >= 20, async () => {
        await sleep(200);
        await Promise.all(docs.map((doc) => bulk(db, [doc])));
      });
    assert.deepEqual(jsonLines(text).map((row) => row.id).sort(),
      docs.map((doc) => doc._id).sort());
  });
}

async function testDbUpdates() {
  const db = await database('updates');
  const name = db.slice(1);
  const own = (list, type) => list.some((row) => row.db_name === name && row.type === type);
  await check('_db_updates', async () => {
    for (let tries = 0; ; tries++) {
      const { json } = await want(200, 'GET', '/_db_updates');
      assert.ok('last_seq' in json);
      if (own(json.results, 'created')) return;
      assert.ok(tries < 50, 'not told after 10 s');
      await sleep(200);
    }
  });
  await check('_db_updates?feed=continuous tells of a write', async () => {
    const told = (text) => own(jsonLines(text.slice(0, text.lastIndexOf('\n') + 1)), 'updated');
    const { text } = await readLive('GET', '/_db_updates?feed=continuous&since=now&heartbeat=500',
      undefined, told, async () => { await sleep(300); await bulk(db, [{ _id: 'a' }]); });
    assert.ok(told(text), text);
  });
  await check('_db_updates?feed=longpoll ends with an event', async () => {
    // Without a heartbeat CouchDB sends not even its headers before the first event.
    const { text, ended } = await readLive('GET',
      '/_db_updates?feed=longpoll&since=now&heartbeat=500',
      undefined, () => false, async () => { await sleep(300); await bulk(db, [{ _id: 'b' }]); });
    assert.ok(ended);
    assert.ok(JSON.parse(text).results.length >= 1);
  });
}

// ---- all ------------------------------------------------------------------------------------

async function cleanUp() {
  for (const name of created) {
    await ask('DELETE', `/${enc(name)}`).catch(() => {});
  }
}

async function main() {
  const tests = [testServer, testDatabases, testDocuments, testLocalDocuments, testBulkDocs,
    testTombstones, testEditsAtOnce, testRevsLimit, testReplicatedWrites, testAttachments,
    testReading, testSelectors, testFind, testChanges, testLiveChanges, testDbUpdates];
  try {
    for (const test of tests) await test();
  } catch (error) {
    await check('the tests ran to their end', () => { throw error; });
  } finally {
    await cleanUp();
  }
  console.log(`1..${count}`);
  process.exitCode = failures ? 1 : 0;
}

main();
