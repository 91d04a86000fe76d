'use strict';

/*
 * _changes: normal, longpoll, continuous and eventsource. A live feed holds no LevelDB while it
 * waits: a write to its database wakes it, and it reads on from where it was.
 */

const {
  HttpError, allow, badRequest, baseHeaders, boolParam, intParam, jsonParam, notFound,
  notImplemented, readJson, isObject,
} = require('./http');
const { formatSeq, parseSeq } = require('./sequences');
const { matches, normalize } = require('./selector');
const { conflictsOf, leavesOf } = require('./store');

const PAGE = 200;
const DEFAULT_TIMEOUT = 60000;
const MAX_TIMEOUT = 3600000;
const MIN_HEARTBEAT = 50;
const FEEDS = ['normal', 'longpoll', 'continuous', 'eventsource'];

// ---- the request ----------------------------------------------------------------------------

/** What a filter lets through. */
async function makeFilter(db, query, body) {
  const name = query.get('filter');
  if (!name) return () => true;
  if (name === '_doc_ids') {
    const ids = body.doc_ids !== undefined ? body.doc_ids : jsonParam(query, 'doc_ids');
    if (!Array.isArray(ids)) throw badRequest('`doc_ids` filter parameter is not a list.');
    const wanted = new Set(ids);
    return (row) => wanted.has(row.metadata.id);
  }
  if (name === '_selector') {
    if (!isObject(body.selector)) {
      throw badRequest('Selector must be specified in POST payload');
    }
    const selector = normalize(body.selector);
    return (row) => matches(selector, row.doc);
  }
  if (name === '_design') return (row) => row.metadata.id.startsWith('_design/');
  const [design] = name.split('/');
  const [winner] = await db.use((store) => store.winners([`_design/${design}`]));
  if (!winner) throw notFound();
  throw notImplemented('A filter function');
}

function heartbeatOf(query) {
  const text = query.get('heartbeat');
  if (text === null || text === 'false') return 0;
  if (text === 'true') return DEFAULT_TIMEOUT;
  return Math.max(MIN_HEARTBEAT, intParam(query, 'heartbeat'));
}

async function parseRequest({ db, query, req }, body) {
  const feed = query.get('feed') || 'normal';
  if (!FEEDS.includes(feed)) {
    throw badRequest('Supported `feed` types: normal, continuous, live, longpoll, eventsource');
  }
  const filter = await makeFilter(db, query, body);
  const { update_seq: current } = await db.use((store) => store.info());
  const last = feed === 'eventsource' ? req.headers['last-event-id'] : undefined;
  return {
    feed,
    filter,
    current,
    since: parseSeq(db, last || query.get('since') || '0', current),
    limit: intParam(query, 'limit', Infinity),
    descending: boolParam(query, 'descending'),
    includeDocs: boolParam(query, 'include_docs'),
    conflicts: boolParam(query, 'conflicts'),
    allLeaves: query.get('style') === 'all_docs',
    timeout: Math.min(intParam(query, 'timeout', DEFAULT_TIMEOUT), MAX_TIMEOUT),
    heartbeat: heartbeatOf(query),
  };
}

// ---- how each feed looks on the wire --------------------------------------------------------

const list = {
  type: null,
  head: '{"results":[\n',
  row: (json, seq, first) => (first ? '' : ',\n') + json,
  tail: (seq, pending) => `\n],\n"last_seq":${seq},"pending":${pending}}\n`,
  beat: '\n',
};
const lines = {
  type: null,
  head: '',
  row: (json) => `${json}\n`,
  tail: (seq, pending) => `{"last_seq":${seq},"pending":${pending}}\n`,
  beat: '\n',
};
const events = {
  type: { 'Content-Type': 'text/event-stream', 'Cache-Control': 'no-cache' },
  head: '',
  row: (json, seq) => `data: ${json}\nid: ${seq}\n\n`,
  tail: () => '',
  beat: 'event: heartbeat\ndata: \n\n',
};
const WIRE = { normal: list, longpoll: list, continuous: lines, eventsource: events };

// ---- the feed -------------------------------------------------------------------------------

class ChangesFeed {
  constructor(db, res, request) {
    this.db = db;
    this.res = res;
    this.request = request;
    this.wire = WIRE[request.feed];
    this.position = request.since;
    this.left = request.limit;
    this.sent = 0;
    this.dirty = true;       // something may have been written since we read
    this.stopped = false;
    this.wakeUp = null;      // resolves the wait
  }

  /** A write has happened. */
  wake() {
    this.dirty = true;
    if (this.wakeUp) this.wakeUp();
  }

  /** The client or the database is gone, or the server stops. */
  stop() {
    if (this.stopped) return;
    this.#clear();
    if (this.request.feed === 'normal') this.res.destroy();
    else this.res.end(this.#tail(0));
  }

  #clear() {
    this.stopped = true;
    clearInterval(this.beats);
    clearTimeout(this.timer);
    this.db.feeds.delete(this);
    if (this.wakeUp) this.wakeUp();
  }

  async run() {
    const { res, request, wire } = this;
    this.db.feeds.add(this);
    res.on('close', () => { if (!this.stopped) this.#clear(); });
    res.writeHead(200, baseHeaders(res.req, { 'X-Accel-Buffering': 'no', ...wire.type }));
    if (wire.head) res.write(wire.head);
    else res.flushHeaders();
    if (request.feed !== 'normal' && request.heartbeat) {
      this.beats = setInterval(() => res.write(wire.beat), request.heartbeat);
    }
    try {
      await (request.descending ? this.#backwards() : this.#forwards());
    } catch (error) {
      if (!this.stopped) this.#clear();
      if (!this.db.gone) console.error(error);
      res.destroy();
    }
  }

  async #forwards() {
    const live = this.request.feed === 'continuous' || this.request.feed === 'eventsource';
    while (!this.stopped) {
      await this.#catchUp();
      if (this.stopped) return;
      const done = this.left <= 0 || this.request.feed === 'normal' || (!live && this.sent);
      if (done) return this.#finish();
      if (!await this.#wait()) return this.stopped ? undefined : this.#finish();
    }
  }

  /** Sends what there is. */
  async #catchUp() {
    while (!this.stopped && this.left > 0) {
      this.dirty = false;
      const page = await this.db.use((store) => store.changes(this.position, PAGE));
      const rows = page.rows.filter(this.request.filter).slice(0, this.left);
      await this.#send(rows);
      if (this.stopped) return;
      if (this.left <= 0 && rows.length) {
        this.position = rows[rows.length - 1].seq;
        return;
      }
      this.position = Math.max(this.position, page.lastSeq);
      if (page.done) return;
    }
  }

  /** The newest first, once. It reads all there is: a view for people, not for machines. */
  async #backwards() {
    const rows = [];
    let since = 0;
    for (;;) {
      const page = await this.db.use((store) => store.changes(since, PAGE));
      rows.push(...page.rows.filter((row) => this.request.filter(row)));
      since = page.lastSeq;
      if (page.done || this.stopped) break;
    }
    const newest = rows.reverse().slice(0, this.left);
    if (newest.length) this.position = newest[newest.length - 1].seq;
    await this.#send(newest);
    this.#finish();
  }

  /** Waits for a write. False if the time is over first. */
  async #wait() {
    if (this.dirty) return true;
    const woken = new Promise((resolve) => { this.wakeUp = () => resolve(true); });
    const over = new Promise((resolve) => {
      if (this.request.heartbeat) return;
      this.timer = setTimeout(() => resolve(false), this.request.timeout);
    });
    const result = await Promise.race([woken, over]);
    clearTimeout(this.timer);
    this.wakeUp = null;
    return result && !this.stopped;
  }

  #row({ seq, metadata, doc }) {
    const { allLeaves, includeDocs, conflicts } = this.request;
    const revs = allLeaves ? leavesOf(metadata).map((leaf) => leaf.rev) : [metadata.winningRev];
    const row = {
      seq: formatSeq(this.db, seq), id: metadata.id, changes: revs.map((rev) => ({ rev })),
    };
    if (metadata.deleted) row.deleted = true;
    if (!includeDocs) return row;
    const losers = conflicts ? conflictsOf(metadata) : [];
    row.doc = losers.length ? { ...doc, _conflicts: losers } : doc;
    return row;
  }

  /** In one piece: a write for each row would cost more than reading it did. */
  async #send(changes) {
    let text = '';
    for (const change of changes) {
      const row = this.#row(change);
      text += this.wire.row(JSON.stringify(row), JSON.stringify(row.seq), this.sent === 0);
      this.sent++;
      this.left--;
    }
    if (text && !this.res.write(text)) await this.#drained();
  }

  #drained() {
    return new Promise((resolve) => {
      const done = () => {
        this.res.off('drain', done);
        this.res.off('close', done);
        resolve();
      };
      this.res.on('drain', done);
      this.res.on('close', done);
    });
  }

  #tail(pending) {
    return this.wire.tail(JSON.stringify(formatSeq(this.db, this.position)), pending);
  }

  #finish() {
    if (this.stopped) return;
    const pending = Math.max(0, this.request.current - this.position);
    this.#clear();
    this.res.end(this.#tail(this.request.descending ? 0 : pending));
  }
}

/** GET and POST /db/_changes. */
async function handleChanges(context) {
  const { db, req, res } = context;
  allow(req, 'GET', 'HEAD', 'POST');
  const body = req.method === 'POST'
    ? await readJson(req, { strictType: true, orEmpty: true }) : {};
  const request = await parseRequest(context, body);
  if (db.gone) throw new HttpError(404, 'not_found', 'Database does not exist.');
  if (req.method === 'HEAD') {
    res.writeHead(200, baseHeaders(req));
    return res.end();
  }
  await new ChangesFeed(db, res, request).run();
}

module.exports = { handleChanges };
