'use strict';

/*
 * CouchDB, asked over HTTP as its admin: few requests at a time, again where one failed, answers
 * bounded. Documents stay texts (see json.js).
 */

const fs = require('fs');
const http = require('http');
const https = require('https');
const path = require('path');
const { countOf, members, splitArray, splitObject, stringOf } = require('./json');

/** Requests at a time. */
const PARALLEL = 8;
/** Attempts at one request, and the wait before the second; it doubles. */
const ATTEMPTS = 5;
const FIRST_WAIT_MS = 100;
/** How long CouchDB may be silent. */
const SILENCE_MS = 60000;
/** Bytes of one answer, unless it is a single document's. */
const MAX_ANSWER = 16 * 1024 * 1024;
/** Characters that are written at once, unless they are a single document's. */
const MAX_WRITE = 4 * 1024 * 1024;
/** Rows on one page. */
const PAGE = 200;
const NAMES_PAGE = 1000;

const PASSING = new Set([429, 500, 502, 503, 504]);

/** What keeps the whole command from its work; its message is for the operator. */
class Fatal extends Error {}

/** An answer that is an error. */
class CouchError extends Error {
  constructor(status, what) {
    super(`CouchDB answered ${what} with ${status}`);
    this.status = status;
  }
}

/** An answer that is not read to its end. */
class TooLarge extends Error {}

const sleep = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });

// ---- where it is ----------------------------------------------------------------------------

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch (error) {
    return text;
  }
}

/** Takes VIBE_COUCHDB_URL apart. No message may hold it: there is a password in it. */
function fromUrl(text) {
  const match = /^(https?):\/\/([^:@/]+):([^@/]+)@([^@/]+)\/?$/.exec(text);
  if (!match) throw new Fatal('VIBE_COUCHDB_URL is not http(s)://user:password@host:port');
  const [, scheme, user, password, host] = match;
  return { origin: `${scheme}://${host}`, auth: `${decode(user)}:${decode(password)}` };
}

/** The CouchDB that util/run.sh uses, from what it keeps in its home. */
function fromHome(home) {
  const read = (name) => {
    try {
      return fs.readFileSync(path.join(home, name), 'utf8');
    } catch (error) {
      throw new Fatal(`no CouchDB is known: VIBE_COUCHDB_URL is not set, and ${home}/${name} `
        + `cannot be read (${error.code}); util/run.sh would have written it`);
    }
  };
  const auth = read('vibe.credentials').trim();
  const conf = read('nginx.conf');
  const server = /^\s*upstream\s+couchdb\s*\{[^}]*?^\s*server\s+([^\s;]+)/m.exec(conf);
  const scheme = /^\s*vibe_couchdb\s+(https?):/m.exec(conf);
  if (!server || !scheme) throw new Fatal(`${home}/nginx.conf does not say where CouchDB is`);
  return { origin: `${scheme[1]}://${server[1]}`, auth };
}

// ---- asking ---------------------------------------------------------------------------------

/** Lets `limit` at a time through. */
class Gate {
  constructor(limit) {
    this.free = limit;
    this.waiting = [];
  }

  async run(work) {
    if (this.free > 0) this.free--;
    else await new Promise((resolve) => { this.waiting.push(resolve); });
    try {
      return await work();
    } finally {
      const next = this.waiting.shift();
      if (next) next();
      else this.free++;
    }
  }
}

const segment = (text) => encodeURIComponent(text);

/** The path of a document; those of CouchDB's own kinds keep their first slash. */
function documentPath(db, id) {
  const [, kind, name] = /^((?:_design|_local)\/)?(.*)$/s.exec(id);
  return `/${segment(db)}/${kind || ''}${segment(name)}`;
}

class Couch {
  /** @param {{origin: string, auth: string}} address */
  constructor({ origin, auth }) {
    this.origin = new URL(origin);
    this.transport = this.origin.protocol === 'https:' ? https : http;
    this.agent = new this.transport.Agent({ keepAlive: true, maxSockets: PARALLEL });
    this.authorization = `Basic ${Buffer.from(auth).toString('base64')}`;
    this.gate = new Gate(PARALLEL);
  }

  /** The CouchDB of VIBE_COUCHDB_URL, else that of VIBE_HOME. */
  static fromEnvironment() {
    const { VIBE_COUCHDB_URL: url, VIBE_HOME: home } = process.env;
    try {
      return new Couch(url ? fromUrl(url) : fromHome(home || '.vibe'));
    } catch (error) {
      if (error instanceof Fatal) throw error;
      throw new Fatal('the address of CouchDB is none');
    }
  }

  get place() {
    return this.origin.host;
  }

  close() {
    this.agent.destroy();
  }

  #once(method, target, body, max) {
    return new Promise((resolve, reject) => {
      const headers = { Accept: 'application/json', Authorization: this.authorization };
      if (body !== undefined) {
        headers['Content-Type'] = 'application/json';
        headers['Content-Length'] = Buffer.byteLength(body);
      }
      const request = this.transport.request(new URL(target, this.origin),
        { method, headers, agent: this.agent });
      const giveUp = (error) => {
        reject(error);
        request.destroy();
      };
      request.setTimeout(SILENCE_MS, () => giveUp(new Error('it is silent')));
      request.on('error', reject);
      request.on('response', (response) => {
        const chunks = [];
        let length = 0;
        response.on('data', (chunk) => {
          chunks.push(chunk);
          length += chunk.length;
          if (length > max) giveUp(new TooLarge());
        });
        response.on('error', reject);
        response.on('close', () => reject(new Error('its answer ended early')));
        response.on('end', () => {
          const text = Buffer.concat(chunks, length).toString('utf8');
          resolve({ status: response.statusCode, text: text.trim() });
        });
      });
      request.end(body);
    });
  }

  /**
   * One request, again where CouchDB or the network had a weak moment. What is written through
   * here must bear being written twice.
   * @param {number[]} [options.statuses] that are no error, besides 200
   * @param {number} [options.max] bytes; more is TooLarge
   * @returns {Promise<{status: number, text: string}>}
   */
  async ask(method, target, body, { statuses = [], max = Infinity } = {}) {
    for (let attempt = 1, wait = FIRST_WAIT_MS; ; attempt++, wait *= 2) {
      let failure;
      try {
        const answer = await this.gate.run(() => this.#once(method, target, body, max));
        if (answer.status === 200 || statuses.includes(answer.status)) return answer;
        failure = this.#failure(answer.status, `${method} ${target.split('?')[0]}`);
        if (!PASSING.has(answer.status)) throw failure;
      } catch (error) {
        if (error instanceof Fatal || error instanceof TooLarge || error === failure) throw error;
        failure = new Fatal(`no CouchDB answers at ${this.place} (${error.code || error.message})`);
      }
      if (attempt === ATTEMPTS) throw failure;
      await sleep(wait);
    }
  }

  #failure(status, what) {
    if (status === 401) {
      return new Fatal(`the CouchDB at ${this.place} refuses this user and password`);
    }
    if (status === 403) return new Fatal(`this user is not an admin of ${this.place}`);
    return new CouchError(status, what);
  }

  /** Throws unless this is a CouchDB, and we its admin. */
  async check() {
    const { status, text } = await this.ask('GET', '/_all_dbs?limit=1', undefined,
      { statuses: [400, 404, 405] });
    if (status !== 200 || text[0] !== '[') throw new Fatal(`${this.place} is no CouchDB`);
  }

  // ---- databases ----------------------------------------------------------------------------

  /** The names that begin with a prefix, in order. */
  async* databases(prefix) {
    let last;
    for (;;) {
      const start = JSON.stringify(last ?? prefix);
      const end = JSON.stringify(`${prefix}~`);
      const { text } = await this.ask('GET', `/_all_dbs?startkey=${segment(start)}`
        + `&endkey=${segment(end)}&limit=${NAMES_PAGE}`);
      const names = JSON.parse(text);
      yield* names.filter((name) => name !== last && name.startsWith(prefix));
      if (names.length < NAMES_PAGE) return;
      last = names[names.length - 1];
    }
  }

  /**
   * What CouchDB says of a database, undefined if there is none.
   * @returns {Promise<Map<string, string> | undefined>}
   */
  async info(db) {
    const { status, text } = await this.ask('GET', `/${segment(db)}`, undefined,
      { statuses: [404] });
    return status === 200 ? members(text) : undefined;
  }

  /** How many copies of each document a database keeps. */
  async copies(db) {
    const info = await this.info(db);
    const cluster = info && info.get('cluster');
    return (cluster && countOf(members(cluster).get('n'))) || 1;
  }

  /** Makes a database that only admins may read. */
  async create(db) {
    await this.ask('PUT', `/${segment(db)}`, undefined, { statuses: [201, 202, 412] });
    await this.ask('PUT', `/${segment(db)}/_security`, JSON.stringify({
      admins: { names: [], roles: ['_admin'] }, members: { names: [], roles: ['_admin'] },
    }));
  }

  // ---- documents ----------------------------------------------------------------------------

  /** A document's members, undefined if there is none. */
  async get(db, id) {
    const { status, text } = await this.ask('GET', documentPath(db, id), undefined,
      { statuses: [404] });
    return status === 200 ? members(text) : undefined;
  }

  /** Writes a document that may not be there yet; the status. */
  async put(db, id, text) {
    const { status } = await this.ask('PUT', documentPath(db, id), text,
      { statuses: [201, 202, 404, 409] });
    return status;
  }

  /**
   * Writes documents, as texts.
   * @param {number} copies how many copies of each must be written
   * @returns {Promise<string[]>} the name of each one's error, or ''
   */
  async write(db, texts, copies) {
    const size = texts.reduce((sum, text) => sum + text.length, 0);
    if (texts.length > 1 && size > MAX_WRITE) return this.#writeHalves(db, texts, copies);
    let why;
    try {
      const { status, text } = await this.ask('POST', `/${segment(db)}/_bulk_docs?w=${copies}`,
        `{"docs":[${texts.join(',')}]}`, { statuses: [201, 202, 400, 404, 413] });
      if (status === 201 || status === 202) {
        return splitArray(text).map((row) => stringOf(members(row).get('error')) ?? '');
      }
      why = status === 413 ? 'too_large' : `CouchDB answered ${status}`;
    } catch (error) {
      if (!(error instanceof CouchError)) throw error;
      why = error.message;
    }
    // One document can make CouchDB refuse them all.
    return texts.length > 1 ? this.#writeHalves(db, texts, copies) : [why];
  }

  async #writeHalves(db, texts, copies) {
    const middle = Math.ceil(texts.length / 2);
    return [...await this.write(db, texts.slice(0, middle), copies),
      ...await this.write(db, texts.slice(middle), copies)];
  }

  /** A revision's members, also a tombstone's; undefined if it is not there. */
  async revision(db, id, rev) {
    const { text } = await this.ask('POST', `/${segment(db)}/_bulk_get`,
      JSON.stringify({ docs: [{ id, rev }] }));
    const [result] = splitArray(members(text).get('results'));
    const [doc] = splitArray(members(result).get('docs'));
    const found = members(doc).get('ok');
    return found && members(found);
  }

  /**
   * @typedef {object} Row a document's winner
   * @property {string} id
   * @property {string} rev
   * @property {boolean} deleted
   * @property {[string, string][]} doc its members; undefined if it is deleted or not asked for
   */

  /** _all_docs; undefined if there is no such database. */
  async #rows(db, options, max) {
    const { status, text } = await this.ask('POST', `/${segment(db)}/_all_docs`,
      JSON.stringify(options), { statuses: [404], max });
    if (status === 404) {
      if (/database does not exist/i.test(text)) return undefined;
      throw new CouchError(404, `POST /${db}/_all_docs`);
    }
    return splitArray(members(text).get('rows')).map((rowText) => {
      const row = members(rowText);
      if (!row.has('value')) {
        if (stringOf(row.get('error')) === 'not_found') return undefined;
        throw new CouchError(stringOf(row.get('error')), `POST /${db}/_all_docs`);
      }
      const value = members(row.get('value'));
      const doc = row.get('doc');
      return {
        id: stringOf(row.get('id')),
        rev: stringOf(value.get('rev')),
        deleted: value.get('deleted') === 'true',
        doc: doc && doc !== 'null' ? splitObject(doc) : undefined,
      };
    });
  }

  /**
   * The winners of some documents.
   * @param {string[]} ids
   * @param {boolean} options.bodies
   * @returns {Promise<(Row|undefined)[] | undefined>} undefined: there is no such database
   */
  async winners(db, ids, { bodies = true } = {}) {
    if (ids.length > PAGE) return this.#halves(db, ids, { bodies });
    try {
      const options = bodies ? { keys: ids, include_docs: true, conflicts: true } : { keys: ids };
      return await this.#rows(db, options, ids.length > 1 ? MAX_ANSWER : Infinity);
    } catch (error) {
      if (!(error instanceof TooLarge)) throw error;
      return this.#halves(db, ids, { bodies });
    }
  }

  async #halves(db, ids, options) {
    const middle = Math.ceil(ids.length / 2);
    const left = await this.winners(db, ids.slice(0, middle), options);
    const right = left && await this.winners(db, ids.slice(middle), options);
    return right && [...left, ...right];
  }

  /**
   * All live documents, page by page; none if there is no such database.
   * @param {{from: string, before: string}} [range] of ids, in the order of bytes
   * @returns {AsyncGenerator<Row[]>}
   */
  async* documents(db, { from, before } = {}) {
    let size = PAGE;
    let last;
    for (;;) {
      const options = { include_docs: true, conflicts: true, limit: size + 1 };
      if ((last ?? from) !== undefined) options.startkey = last ?? from;
      if (before !== undefined) Object.assign(options, { endkey: before, inclusive_end: false });
      let rows;
      try {
        rows = await this.#rows(db, options, size > 1 ? MAX_ANSWER : Infinity);
      } catch (error) {
        if (!(error instanceof TooLarge)) throw error;
        size = Math.ceil(size / 2);
        continue;
      }
      const fresh = (rows || []).filter((row) => row.id !== last);
      if (fresh.length) yield fresh;
      if (!rows || rows.length < options.limit) return;
      last = fresh[fresh.length - 1].id;
      size = Math.min(PAGE, size * 2);
    }
  }

  /**
   * All documents that match a selector, a text, as CouchDB understands it; page by page, none if
   * there is no such database.
   * @returns {AsyncGenerator<[string, string][][]>}
   */
  async* matching(db, selector) {
    let size = PAGE;
    let bookmark = '""';
    for (;;) {
      let answer;
      try {
        answer = await this.ask('POST', `/${segment(db)}/_find`,
          `{"selector":${selector},"limit":${size},"bookmark":${bookmark}}`,
          { statuses: [404], max: size > 1 ? MAX_ANSWER : Infinity });
      } catch (error) {
        if (!(error instanceof TooLarge)) throw error;
        size = Math.ceil(size / 2);
        continue;
      }
      if (answer.status === 404) return;
      const found = members(answer.text);
      const docs = splitArray(found.get('docs')).map(splitObject);
      if (!docs.length) return;
      yield docs;
      bookmark = found.get('bookmark');
      size = Math.min(PAGE, size * 2);
    }
  }
}

/**
 * Works on the items of an iterable, some at a time, and gives the results in their order.
 * @param {AsyncIterable|Iterable} items
 * @param {function(*): Promise} work
 */
async function* inOrder(items, work, parallel = PARALLEL) {
  const running = [];
  try {
    for await (const item of items) {
      const result = work(item);
      result.catch(() => {});
      running.push(result);
      if (running.length >= parallel) yield await running.shift();
    }
    while (running.length) yield await running.shift();
  } finally {
    await Promise.allSettled(running);
  }
}

/** Works on the items of an iterable, some at a time; the first failure ends it. */
async function forEach(items, work, parallel = PARALLEL) {
  const running = new Set();
  let failure;
  for await (const item of items) {
    const result = work(item)
      .catch((error) => { failure = failure || error; })
      .finally(() => running.delete(result));
    running.add(result);
    if (running.size >= parallel) await Promise.race(running);
    if (failure) break;
  }
  await Promise.all(running);
  if (failure) throw failure;
}

module.exports = { Couch, CouchError, Fatal, forEach, inOrder, sleep };
