'use strict';

/*
 * From documents as clients send them to what PouchDB stores: the checks that CouchDB makes, and
 * one queue per database. While a batch is being written the next is collected, so many small
 * requests at once cost about as much as one big one.
 */

const crypto = require('crypto');
const { HttpError, badRequest, conflict, isObject, toHttpError } = require('./http');

const MAX_DOCUMENT = 8000000;
const MAX_BATCH = 500;
const MAX_NESTING = 500;
const REV = /^\d{1,15}-[^-]+$/;
const LOCAL_REV = /^0-\d{1,15}$/;

/** Members with a leading underscore that stay in the document. */
const KEPT = new Set(['_id', '_rev', '_deleted', '_attachments', '_revisions', '_access',
  '_replication_id', '_replication_state', '_replication_state_time',
  '_replication_state_reason', '_replication_stats']);
/** Those that CouchDB drops without a word. */
const DROPPED = new Set(['_revs_info', '_local_seq', '_conflicts', '_deleted_conflicts']);

const illegalId = (reason) => new HttpError(400, 'illegal_docid', reason);
const badMember = (name) =>
  new HttpError(400, 'doc_validation', `Bad special document member: ${name}`);
const isLocal = (id) => id.startsWith('_local/');
const uuid = () => crypto.randomBytes(16).toString('hex');

/** Throws unless this may be the id of a document. */
function checkId(id) {
  if (typeof id !== 'string') throw illegalId('Document id must be a string');
  if (id === '') throw illegalId('Document id must not be empty');
  if (id === '_design/' || id === '_local/') throw illegalId(`Illegal document id \`${id}\``);
  if (id[0] === '_' && !id.startsWith('_design/') && !isLocal(id)) {
    throw illegalId('Only reserved document ids may start with underscore.');
  }
}

/** Throws unless this has the form of a revision. */
function checkRev(rev) {
  if (typeof rev !== 'string' || !REV.test(rev)) throw badRequest('Invalid rev format');
}

function checkMembers(doc) {
  for (const name of Object.keys(doc)) {
    if (name[0] !== '_' || KEPT.has(name)) continue;
    if (!DROPPED.has(name)) throw badMember(name);
    delete doc[name];
  }
  if ('_deleted' in doc && typeof doc._deleted !== 'boolean') throw badMember('_deleted');
  if (doc._deleted === false) delete doc._deleted;
}

function checkAttachments(doc) {
  if (!('_attachments' in doc)) return;
  if (!isObject(doc._attachments)) throw badMember('_attachments');
  for (const [name, attachment] of Object.entries(doc._attachments)) {
    if (!isObject(attachment)) {
      delete doc._attachments[name];
      continue;
    }
    if (name[0] === '_') {
      throw badRequest(`Attachment name '${name}' starts with prohibited character '_'`);
    }
    if (attachment.stub) continue;
    const { data } = attachment;
    if (typeof data !== 'string' || !/^[A-Za-z0-9+/\s]*={0,2}\s*$/.test(data)) {
      throw badRequest(`Invalid attachment data for ${name}`);
    }
    attachment.content_type = attachment.content_type || 'application/octet-stream';
  }
  if (!Object.keys(doc._attachments).length) delete doc._attachments;
}

function checkRevisions(doc, newEdits) {
  const revisions = doc._revisions;
  if (revisions !== undefined) {
    if (!isObject(revisions)) throw badMember('_revisions');
    const { start, ids } = revisions;
    if (!Number.isInteger(start)) {
      throw new HttpError(400, 'doc_validation', "_revisions.start isn't an integer.");
    }
    if (!Array.isArray(ids)) {
      throw new HttpError(400, 'doc_validation', "_revisions.ids isn't a array.");
    }
    if (!ids.every((id) => typeof id === 'string' && id && !id.includes('-'))) {
      throw new HttpError(400, 'doc_validation', "RevId isn't a string");
    }
    if (ids.length) doc._rev = `${start}-${ids[0]}`;
    if (newEdits || !ids.length || ids.length > start) delete doc._revisions;
  }
  if ('_rev' in doc) checkRev(doc._rev);
  else if (!newEdits) {
    throw badRequest('When `new_edits: false`, the document needs `_rev` or `_revisions` '
      + 'specified');
  }
}

/** Deeper ones would overflow the stack somewhere below, and take a whole batch with them. */
function checkNesting(value, depth) {
  if (depth > MAX_NESTING) throw badRequest('The document is nested too deeply.');
  for (const name in value) {
    const member = value[name];
    if (member !== null && typeof member === 'object') checkNesting(member, depth + 1);
  }
}

function checkSize(doc) {
  const { _id, _rev, _revisions, _attachments, ...body } = doc;
  if (Buffer.byteLength(JSON.stringify(body)) > MAX_DOCUMENT) {
    throw new HttpError(413, 'document_too_large', String(_id));
  }
}

/**
 * Checks a document as CouchDB does before it writes anything, and makes it ready for PouchDB.
 * @param {*} doc changed in place
 * @param {{newEdits: boolean, bodyLength: number}} options `bodyLength` is the request's: a
 *   document in a small request needs no weighing
 */
function checkDocument(doc, { newEdits, bodyLength }) {
  if (!isObject(doc)) throw badRequest('Document must be a JSON object');
  if (doc._id === undefined) doc._id = uuid();
  checkId(doc._id);
  checkMembers(doc);
  checkNesting(doc, 1);
  if (bodyLength > MAX_DOCUMENT) checkSize(doc);
  if (isLocal(doc._id)) return;
  checkRevisions(doc, newEdits);
  checkAttachments(doc);
}

/**
 * Writes a local document. CouchDB keeps no revision tree of these and compares no revisions:
 * the last writer wins, and `_rev` only counts.
 */
async function writeLocal(store, doc) {
  if ('_rev' in doc && !(typeof doc._rev === 'string' && LOCAL_REV.test(doc._rev))) {
    throw badRequest('Invalid rev format');
  }
  const { _id, _rev, _deleted, ...members } = doc;
  if (_deleted) {
    await store.removeLocal(_id);
    return { ok: true, id: _id, rev: '0-0' };
  }
  const rev = `0-${_rev === undefined ? 1 : Number(_rev.slice(2)) + 1}`;
  await store.putLocal({ _id, _rev: rev, ...members });
  return { ok: true, id: _id, rev };
}

/** The stubs among a document's attachments, filled in from its previous revision. */
async function fillStubs(store, doc, newEdits) {
  const stubs = Object.entries(doc._attachments || {}).filter(([, a]) => a.stub);
  if (!stubs.length) return;
  const previous = await previousRevision(store, doc, newEdits);
  for (const [name] of stubs) {
    const known = previous && previous._attachments && previous._attachments[name];
    if (!known) {
      throw new HttpError(412, 'missing_stub', `Invalid attachment stub in ${doc._id} for ${name}`);
    }
    doc._attachments[name] = known;
  }
}

async function previousRevision(store, doc, newEdits) {
  const [metadata] = await store.metadata([doc._id]);
  if (!metadata) return null;
  if (newEdits) return (await store.bodies([{ metadata, rev: doc._rev || '' }]))[0];
  const { start, ids } = doc._revisions || { start: 0, ids: [] };
  const ancestors = ids.map((id, i) => `${start - i}-${id}`).slice(1);
  const kept = ancestors.find((rev) => metadata.rev_map[rev]);
  return kept ? (await store.bodies([{ metadata, rev: kept }]))[0] : null;
}

/**
 * Which of these documents say `_rev` of a document that is deleted: CouchDB takes that for a
 * conflict, even if it is the tombstone's. (One without `_rev` goes over the tombstone.)
 */
async function overTombstones(store, docs) {
  const named = docs.filter((doc) => doc._rev !== undefined);
  const metadata = await store.metadata(named.map((doc) => doc._id));
  return new Set(named.filter((doc, i) => metadata[i] && metadata[i].deleted));
}

const errorRow = (id, error) => {
  const e = error.status === 409 ? conflict() : toHttpError(error);
  return { id, error: e.error, reason: e.reason };
};

/**
 * The places of documents, in batches that have each id once: PouchDB mixes up the revisions of
 * a document that is edited twice in one call.
 */
function oncePerId(docs) {
  const batches = [];
  const times = new Map();
  docs.forEach((doc, i) => {
    const n = times.get(doc._id) || 0;
    times.set(doc._id, n + 1);
    if (!batches[n]) batches[n] = [];
    batches[n].push(i);
  });
  return batches;
}

/** Writes checked documents as new revisions; a row for each. */
async function writeEdits(store, docs) {
  const ids = docs.map((doc) => doc._id);
  const rows = new Array(docs.length);
  for (const places of oncePerId(docs)) {
    const batch = places.map((i) => docs[i]);
    const refused = await overTombstones(store, batch);
    const accepted = places.filter((i) => !refused.has(docs[i]));
    for (const i of places) if (refused.has(docs[i])) rows[i] = errorRow(ids[i], conflict());
    if (!accepted.length) continue;
    const written = await store.pouch.bulkDocs({ docs: accepted.map((i) => docs[i]) },
      { new_edits: true });
    written.forEach((row, k) => {
      const id = ids[accepted[k]];
      rows[accepted[k]] = row.error ? errorRow(id, row) : { ok: true, id: row.id, rev: row.rev };
    });
  }
  return rows;
}

/** Writes checked documents as the revisions they name; a row for each that failed. */
async function writeReplicated(store, docs) {
  const rows = await store.pouch.bulkDocs({ docs }, { new_edits: false });
  return rows.filter((row) => row.error).map((row) => errorRow(row.id, row));
}

class WriteQueue {
  constructor(db) {
    this.db = db;
    this.jobs = [];
    this.running = false;
  }

  /**
   * Writes checked documents.
   * @param {object[]} docs
   * @param {boolean} newEdits false: as they are, with their revisions
   * @returns {Promise<object[]>} CouchDB's rows
   */
  write(docs, newEdits = true) {
    const alone = !newEdits || docs.some((doc) => doc._attachments || isLocal(doc._id));
    return new Promise((resolve, reject) => {
      this.jobs.push({ docs, newEdits, alone, resolve, reject });
      if (!this.running) this.#run();
    });
  }

  async #run() {
    this.running = true;
    while (this.jobs.length) {
      const jobs = this.#nextJobs();
      try {
        const rows = await this.db.use((store) => this.#write(store, jobs));
        let next = 0;
        for (const job of jobs) {
          job.resolve(jobs.length > 1 ? rows.slice(next, next + job.docs.length) : rows);
          next += job.docs.length;
        }
      } catch (error) {
        for (const job of jobs) job.reject(error);
      }
    }
    this.running = false;
  }

  /** The jobs that the next batch takes: one that must go alone, or as many as fit. */
  #nextJobs() {
    let count = 1;
    if (!this.jobs[0].alone) {
      let docs = this.jobs[0].docs.length;
      while (count < this.jobs.length && !this.jobs[count].alone) {
        docs += this.jobs[count].docs.length;
        if (docs > MAX_BATCH) break;
        count++;
      }
    }
    return this.jobs.splice(0, count);
  }

  async #write(store, jobs) {
    const { newEdits, alone } = jobs[0];
    const docs = jobs.length > 1 ? jobs.flatMap((job) => job.docs) : jobs[0].docs;
    const designs = docs.some((doc) => doc._id.startsWith('_design/'));
    const rows = alone ? await this.#writeAlone(store, docs, newEdits)
      : await writeEdits(store, docs);
    if (designs) this.db.indexes = null;
    if (docs.some((doc) => !isLocal(doc._id))) this.db.changed();
    return rows;
  }

  async #writeAlone(store, docs, newEdits) {
    for (const doc of docs) if (!isLocal(doc._id)) await fillStubs(store, doc, newEdits);
    const ordinary = docs.filter((doc) => !isLocal(doc._id));
    const locals = docs.filter((doc) => isLocal(doc._id));
    const rows = ordinary.length === 0 ? []
      : await (newEdits ? writeEdits : writeReplicated)(store, ordinary);
    const localRows = [];
    for (const doc of locals) localRows.push(await writeLocal(store, doc));
    if (!newEdits) return rows;
    let next = 0;
    let nextLocal = 0;
    return docs.map((doc) => (locals.includes(doc) ? localRows[nextLocal++] : rows[next++]));
  }
}

module.exports = { WriteQueue, checkDocument, checkId, checkRev, uuid, writeLocal };
