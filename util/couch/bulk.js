'use strict';

/*
 * Many documents at a time: _all_docs, _bulk_docs, _bulk_get, _revs_diff.
 */

const {
  allow, badRequest, boolParam, intParam, isObject, jsonParam, readJson, sendJson, toHttpError,
  HttpError,
} = require('./http');
const { conflictsOf, leavesOf, pathsThrough } = require('./store');
const { readRevisions, revisionsFor } = require('./documents');
const { checkDocument, checkId, checkRev } = require('./writes');
const { formatSeq } = require('./sequences');

const PAGE = 500;

// ---- _all_docs ------------------------------------------------------------------------------

/** The options of _all_docs, from the query and, before it, from the body. */
function allDocsOptions(query, body) {
  const value = (...names) => {
    for (const name of names) {
      if (name in body) return body[name];
      if (query.has(name)) return jsonParam(query, name);
    }
    return undefined;
  };
  const count = (name) => {
    if (!(name in body)) return intParam(query, name);
    if (Number.isInteger(body[name]) && body[name] >= 0) return body[name];
    throw new HttpError(400, 'query_parse_error', `Invalid value for integer: ${body[name]}`);
  };
  const flag = (name) => (name in body ? body[name] === true : boolParam(query, name));
  return {
    keys: value('keys'),
    key: value('key'),
    start: value('startkey', 'start_key'),
    end: value('endkey', 'end_key'),
    limit: count('limit'),
    skip: count('skip') || 0,
    descending: flag('descending'),
    exclusiveEnd: (value('inclusive_end') === false),
    includeDocs: flag('include_docs'),
    conflicts: flag('conflicts'),
    updateSeq: flag('update_seq'),
  };
}

function allDocsRow(metadata, body, options) {
  const row = { id: metadata.id, key: metadata.id, value: { rev: metadata.winningRev } };
  if (metadata.deleted) row.value.deleted = true;
  if (!options.includeDocs) return row;
  row.doc = metadata.deleted ? null : body;
  const losers = options.conflicts && row.doc ? conflictsOf(metadata) : [];
  if (losers.length) row.doc._conflicts = losers;
  return row;
}

async function withBodies(store, list, options) {
  const live = list.filter((m) => m && !m.deleted);
  const bodies = options.includeDocs
    ? await store.bodies(live.map((m) => ({ metadata: m, rev: m.winningRev }))) : [];
  return new Map(live.map((m, i) => [m, bodies[i]]));
}

async function rowsByKeys(store, keys, options) {
  const ids = keys.map((key) => (typeof key === 'string' ? key : ''));
  const list = await store.metadata(ids);
  const bodies = await withBodies(store, list, options);
  return list.map((metadata, i) => (metadata
    ? allDocsRow(metadata, bodies.get(metadata), options)
    : { key: keys[i], error: 'not_found' }));
}

function allDocsRange(options) {
  const [low, high] = options.descending
    ? [options.end, options.start] : [options.start, options.end];
  const range = { reverse: options.descending };
  if (typeof low === 'string') range.from = low;
  if (typeof high === 'string') range.beforeKey = `${high}\0`;
  if (options.exclusiveEnd && typeof options.end === 'string') {
    if (options.descending) range.afterKey = options.end;
    else range.beforeKey = options.end;
  }
  return range;
}

async function rowsByRange(store, options) {
  const cursor = store.documents(allDocsRange(options));
  const rows = [];
  let { skip, limit = Infinity } = options;
  try {
    while (limit > 0 && !cursor.done) {
      const page = (await cursor.page(PAGE)).map((row) => JSON.parse(row.value));
      const live = page.filter((metadata) => !metadata.deleted).slice(skip, skip + limit);
      skip = Math.max(0, skip - page.filter((metadata) => !metadata.deleted).length);
      const bodies = await withBodies(store, live, options);
      for (const metadata of live) rows.push(allDocsRow(metadata, bodies.get(metadata), options));
      limit -= live.length;
    }
  } finally {
    await cursor.end();
  }
  return rows;
}

/** GET and POST /db/_all_docs. */
async function handleAllDocs({ db, query, req, res }) {
  allow(req, 'GET', 'HEAD', 'POST');
  const body = req.method === 'POST'
    ? await readJson(req, { strictType: true, orEmpty: true }) : {};
  const options = allDocsOptions(query, body);
  if (options.keys !== undefined && !Array.isArray(options.keys)) {
    throw badRequest('`keys` member must be an array.');
  }
  const keys = options.key !== undefined ? [options.key] : options.keys;
  const answer = await db.use(async (store) => {
    const info = await store.info();
    let rows = keys ? await rowsByKeys(store, keys, options) : await rowsByRange(store, options);
    if (keys) rows = rows.slice(options.skip, options.skip + (options.limit ?? rows.length));
    if (options.key !== undefined) rows = rows.filter((row) => row.value && !row.value.deleted);
    const counted = !keys && options.start === undefined && !options.descending;
    const result = { total_rows: info.doc_count, offset: counted ? options.skip : null, rows };
    if (options.updateSeq) result.update_seq = formatSeq(db, info.update_seq);
    return result;
  });
  sendJson(res, 200, answer);
}

// ---- _bulk_docs -----------------------------------------------------------------------------

/** POST /db/_bulk_docs. */
async function handleBulkDocs({ db, req, res }) {
  allow(req, 'POST');
  const { docs, new_edits: newEdits = true } = await readJson(req, { strictType: true });
  if (docs === undefined) throw badRequest('POST body must include `docs` parameter.');
  if (!Array.isArray(docs)) throw badRequest('`docs` parameter must be an array.');
  if (typeof newEdits !== 'boolean') {
    throw badRequest('`new_edits` parameter must be a boolean.');
  }
  for (const doc of docs) checkDocument(doc, { newEdits, bodyLength: req.bodyLength });
  try {
    sendJson(res, 201, docs.length ? await db.writes.write(docs, newEdits) : []);
  } catch (error) {
    // A stub of an attachment that is not there makes CouchDB fail the whole request with 500.
    if (error.error === 'missing_stub') throw new HttpError(500, error.error, error.reason);
    throw error;
  }
}

// ---- _bulk_get ------------------------------------------------------------------------------

function bulkGetError(id, rev, error) {
  const e = toHttpError(error);
  return { error: { id, rev, error: e.error, reason: e.reason } };
}

async function bulkGetOne(store, metadata, { id, rev }, show) {
  const missing = () => [bulkGetError(id, rev === undefined ? 'undefined' : rev,
    new HttpError(404, 'not_found', 'missing'))];
  if (!metadata) return missing();
  const revs = rev === undefined ? leavesOf(metadata).map((leaf) => leaf.rev)
    : revisionsFor(metadata, rev, show.latest);
  if (!revs.length) return missing();
  const docs = await readRevisions(store, metadata, revs, show);
  return docs.every((doc) => !doc) ? missing()
    : docs.filter((doc) => doc).map((doc) => ({ ok: doc }));
}

function checkBulkGetItem(item) {
  if (!isObject(item)) throw badRequest('document must be a JSON object');
  if (item.id === undefined) throw badRequest('document id missed');
  checkId(item.id);
  if (item.rev !== undefined) checkRev(item.rev);
}

/** POST /db/_bulk_get. */
async function handleBulkGet({ db, query, req, res }) {
  allow(req, 'POST');
  const { docs } = await readJson(req, { strictType: true });
  if (!Array.isArray(docs)) throw badRequest("Missing JSON list of 'docs'.");
  const show = {
    revs: boolParam(query, 'revs'),
    latest: boolParam(query, 'latest'),
    attachments: boolParam(query, 'attachments'),
  };
  const results = await db.use(async (store) => {
    const ids = docs.map((item) => (isObject(item) ? String(item.id) : ''));
    const metadata = await store.metadata(ids);
    return Promise.all(docs.map(async (item, i) => {
      try {
        checkBulkGetItem(item);
      } catch (error) {
        const id = isObject(item) && item.id !== undefined ? item.id : null;
        const rev = isObject(item) && item.rev !== undefined ? item.rev : null;
        return { id, docs: [bulkGetError(id, rev, error)] };
      }
      return { id: item.id, docs: await bulkGetOne(store, metadata[i], item, show) };
    }));
  });
  sendJson(res, 200, { results });
}

// ---- _revs_diff -----------------------------------------------------------------------------

function revsDiff(metadata, revs) {
  const missing = revs.filter((rev) => !metadata || !pathsThrough(metadata, rev).length);
  if (!missing.length) return null;
  const newest = Math.max(...missing.map((rev) => parseInt(rev, 10)));
  const ancestors = metadata ? leavesOf(metadata).map((leaf) => leaf.rev)
    .filter((rev) => parseInt(rev, 10) < newest) : [];
  return ancestors.length ? { missing, possible_ancestors: ancestors } : { missing };
}

/** POST /db/_revs_diff. */
async function handleRevsDiff({ db, req, res }) {
  allow(req, 'POST');
  const body = await readJson(req, { strictType: true });
  const ids = Object.keys(body);
  for (const id of ids) {
    if (!Array.isArray(body[id])) throw badRequest('Invalid rev format');
    body[id].forEach(checkRev);
  }
  const metadata = await db.use((store) => store.metadata(ids));
  const answer = Object.create(null);
  ids.forEach((id, i) => {
    const diff = revsDiff(metadata[i], body[id]);
    if (diff) answer[id] = diff;
  });
  sendJson(res, 200, answer);
}

module.exports = { handleAllDocs, handleBulkDocs, handleBulkGet, handleRevsDiff };
