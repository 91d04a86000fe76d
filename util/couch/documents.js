'use strict';

/*
 * One document at a time: GET, PUT, DELETE, POST to the database, local documents, and reading
 * attachments.
 */

const {
  HttpError, badRequest, boolParam, conflict, isObject, jsonParam, notFound,
  notImplemented, allow, readBody, readJson, sendBuffer, sendJson, sendUnlessKnown, unquote,
} = require('./http');
const { conflictsOf, leavesOf, pathsThrough } = require('./store');
const { checkDocument, checkId, checkRev, uuid, writeLocal } = require('./writes');

const NOT_AN_OBJECT = 'Document must be a JSON object';

/**
 * Reads revisions of a document with what the request asks to be shown beside them.
 * @param {string[]} revs
 * @param {{revs?: boolean, attachments?: boolean}} show
 * @returns {Promise<Array<object|undefined>>} undefined for a revision whose body is not kept
 */
async function readRevisions(store, metadata, revs, show) {
  const docs = await store.bodies(revs.map((rev) => ({ metadata, rev })));
  for (let i = 0; i < docs.length; i++) {
    if (docs[i] && show.revs) docs[i]._revisions = pathsThrough(metadata, revs[i])[0].revisions;
    if (docs[i] && show.attachments) await inlineAttachments(store, docs[i]);
  }
  return docs;
}

async function inlineAttachments(store, doc) {
  for (const attachment of Object.values(doc._attachments || {})) {
    attachment.data = (await store.getBinary(attachment.digest)).toString('base64');
    delete attachment.stub;
    delete attachment.length;
  }
}

/** The revisions that a request for one revision means; none if it is unknown. */
function revisionsFor(metadata, rev, latest) {
  if (!latest) return metadata.rev_map[rev] ? [rev] : [];
  const leaves = pathsThrough(metadata, rev).map((path) => path.leaf);
  return leaves.filter((leaf) => metadata.rev_map[leaf]);
}

function addInfo(doc, metadata, query) {
  const meta = boolParam(query, 'meta');
  const losers = leavesOf(metadata).filter((leaf) => leaf.rev !== metadata.winningRev);
  if (meta || boolParam(query, 'conflicts')) {
    const revs = conflictsOf(metadata);
    if (revs.length) doc._conflicts = revs;
  }
  if (meta || boolParam(query, 'deleted_conflicts')) {
    const revs = losers.filter((leaf) => leaf.deleted).map((leaf) => leaf.rev);
    if (revs.length) doc._deleted_conflicts = revs;
  }
  if (meta || boolParam(query, 'revs_info')) {
    const { start, ids } = pathsThrough(metadata, doc._rev)[0].revisions;
    doc._revs_info = ids.map((id, i) => {
      const rev = `${start - i}-${id}`;
      return { rev, status: metadata.rev_map[rev] ? 'available' : 'missing' };
    });
  }
}

async function getOpenRevs(store, metadata, wanted, query) {
  const show = { revs: boolParam(query, 'revs'), attachments: boolParam(query, 'attachments') };
  const latest = boolParam(query, 'latest');
  const asked = wanted === 'all' ? leavesOf(metadata).map((leaf) => leaf.rev) : wanted;
  const rows = [];
  const seen = new Set();
  for (const rev of asked) {
    checkRev(rev);
    const revs = metadata ? revisionsFor(metadata, rev, latest) : [];
    const docs = revs.length ? await readRevisions(store, metadata, revs, show) : [];
    if (!docs.some((doc) => doc)) rows.push({ missing: rev });
    docs.forEach((doc, i) => {
      if (doc && !seen.has(revs[i])) rows.push({ ok: doc });
      seen.add(revs[i]);
    });
  }
  return rows;
}

/** GET of a document, or of some of its revisions. */
async function getDocument({ db, id, query, res }) {
  await db.use(async (store) => {
    const [metadata] = await store.metadata([id]);
    if (query.has('open_revs')) {
      const wanted = query.get('open_revs') === 'all' ? 'all' : jsonParam(query, 'open_revs');
      if (wanted !== 'all' && !Array.isArray(wanted)) throw badRequest('Invalid open_revs');
      if (!metadata && wanted === 'all') throw notFound();
      return sendJson(res, 200, await getOpenRevs(store, metadata, wanted, query));
    }
    const rev = query.get('rev');
    if (rev !== null) checkRev(rev);
    if (!metadata) throw notFound();
    if (metadata.deleted && rev === null) throw notFound('deleted');
    const show = { revs: boolParam(query, 'revs'), attachments: boolParam(query, 'attachments') };
    const [found] = rev === null ? [metadata.winningRev]
      : revisionsFor(metadata, rev, boolParam(query, 'latest'));
    const [doc] = found ? await readRevisions(store, metadata, [found], show) : [];
    if (!doc) throw notFound();
    addInfo(doc, metadata, query);
    if ([...query.keys()].some((name) => name !== 'rev')) return sendJson(res, 200, doc);
    sendUnlessKnown(res, doc._rev, () =>
      sendJson(res, 200, doc, { ETag: `"${doc._rev}"` }));
  });
}

function location(req, db, id) {
  const host = req.headers.host || 'localhost';
  return `http://${host}/${encodeURIComponent(db.name)}/${encodeURIComponent(id)}`;
}

/** Writes one checked document and answers. */
async function writeOne({ db, req, res }, doc, newEdits, status) {
  const rev = doc._rev;
  const [row] = await db.writes.write([doc], newEdits);
  if (row && row.error === 'conflict') throw conflict();
  if (row && row.error) throw new HttpError(500, row.error, row.reason);
  const answer = row || { ok: true, id: doc._id, rev };
  const headers = { ETag: `"${answer.rev}"` };
  if (status === 201) headers.Location = location(req, db, answer.id);
  sendJson(res, status, answer, headers);
}

/** The revision a request names in its query or in If-Match, or undefined. */
function namedRevision(req, query) {
  const rev = query.get('rev') || unquote(req.headers['if-match']);
  if (rev !== undefined) checkRev(rev);
  return rev;
}

async function putDocument(context) {
  const { db, id, query, req, res } = context;
  checkId(id);
  const doc = await readJson(req, { mustBeObject: NOT_AN_OBJECT });
  const rev = namedRevision(req, query);
  if (rev && doc._rev && doc._rev !== rev) {
    throw badRequest('Document rev from request body and query string have different values');
  }
  if (rev) doc._rev = rev;
  doc._id = id;
  const newEdits = query.get('new_edits') !== 'false';
  checkDocument(doc, { newEdits, bodyLength: req.bodyLength });
  if (!id.startsWith('_local/')) {
    return writeOne(context, doc, newEdits, doc._deleted ? 200 : 201);
  }
  const answer = await db.use((store) => writeLocal(store, doc));
  sendJson(res, 201, answer, { ETag: `"${answer.rev}"`, Location: location(req, db, id) });
}

async function deleteDocument(context) {
  const { db, id, query, req, res } = context;
  await readBody(req);
  if (id.startsWith('_local/')) {
    const answer = await db.use(async (store) => {
      if (!await store.getLocal(id)) throw notFound();
      return writeLocal(store, { _id: id, _deleted: true });
    });
    return sendJson(res, 200, answer);
  }
  await db.use(async (store) => {
    const [metadata] = await store.metadata([id]);
    if (!metadata) throw notFound();
    if (metadata.deleted) throw notFound('deleted');
  });
  const rev = namedRevision(req, query);
  if (!rev) throw conflict();
  return writeOne(context, { _id: id, _rev: rev, _deleted: true }, true, 200);
}

/** POST /db: a document whose id may be left to the server. */
async function postDocument(context) {
  const { req } = context;
  const doc = await readJson(req, { strictType: true, mustBeObject: NOT_AN_OBJECT });
  if (doc._id === undefined) doc._id = uuid();
  checkDocument(doc, { newEdits: true, bodyLength: req.bodyLength });
  return writeOne(context, doc, true, 201);
}

async function getLocalDocument({ db, id, res }) {
  const doc = await db.use((store) => store.getLocal(id));
  if (!doc) throw notFound();
  sendJson(res, 200, doc);
}

/** A request to /db/ID. */
function handleDocument(context) {
  const { req, id } = context;
  allow(req, 'DELETE', 'GET', 'HEAD', 'PUT');
  if (req.method === 'PUT') return putDocument(context);
  if (req.method === 'DELETE') return deleteDocument(context);
  return id.startsWith('_local/') ? getLocalDocument(context) : getDocument(context);
}

/** A request to /db/ID/NAME. Attachments are written inline, with their document. */
async function handleAttachment({ db, id, attachment, query, req, res }) {
  if (req.method === 'PUT' || req.method === 'DELETE') {
    throw notImplemented('Writing attachments on their own');
  }
  allow(req, 'DELETE', 'GET', 'HEAD', 'PUT');
  const { stub, bytes } = await db.use(async (store) => {
    const [metadata] = await store.metadata([id]);
    if (!metadata) throw notFound();
    const rev = query.get('rev') || metadata.winningRev;
    if (!query.has('rev') && metadata.deleted) throw notFound('deleted');
    const [doc] = await store.bodies([{ metadata, rev }]);
    if (!doc) throw notFound();
    const known = isObject(doc._attachments) && Object.hasOwn(doc._attachments, attachment)
      ? doc._attachments[attachment] : null;
    if (!known) throw notFound('Document is missing attachment');
    return { stub: known, bytes: await store.getBinary(known.digest) };
  });
  const tag = stub.digest.slice('md5-'.length);
  sendUnlessKnown(res, tag, () => sendBuffer(res, 200, bytes, {
    'Content-Type': stub.content_type, ETag: `"${tag}"`, 'Accept-Ranges': 'none',
  }));
}

module.exports = {
  handleAttachment, handleDocument, postDocument, readRevisions, revisionsFor,
};
