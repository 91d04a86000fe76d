'use strict';

/*
 * _db_updates: which databases were created, updated, deleted. A hint, not a log, as with
 * CouchDB: one event per database and type is remembered, updates are told in batches, and after
 * a restart every database counts as updated.
 */

const { HttpError, allow, badRequest, baseHeaders, intParam, notImplemented } =
  require('./http');

const BATCH_MS = 50;
const MAX_UNSENT = 16 * 1024 * 1024;
const DEFAULT_TIMEOUT = 60000;
const SEQ = /^(\d{1,16})-g$/;

class DatabaseEvents {
  constructor() {
    // Starts at the time, so that it only grows, over restarts too.
    this.seq = Date.now() * 1000;
    this.events = new Map();   // "type:name" -> event, oldest first
    this.pending = new Set();  // names of updated databases, not told yet
    this.timer = null;
    this.feeds = new Set();    // live answers
  }

  /** @param {'created'|'updated'|'deleted'} type */
  add(name, type) {
    if (type !== 'updated') return this.#tell(name, type);
    this.pending.add(name);
    if (!this.timer) this.timer = setTimeout(() => this.#flush(), BATCH_MS);
  }

  #flush() {
    this.timer = null;
    const names = [...this.pending];
    this.pending.clear();
    for (const name of names) this.#tell(name, 'updated');
  }

  #tell(name, type) {
    if (type === 'deleted') this.pending.delete(name);
    const event = { db_name: name, type, seq: `${++this.seq}-g` };
    this.events.delete(`${type}:${name}`);
    this.events.set(`${type}:${name}`, event);
    for (const feed of [...this.feeds]) feed.send(event);
  }

  /** The sequence now, as text. */
  current() {
    return `${this.seq}-g`;
  }

  /** Ends the live answers. */
  stop() {
    for (const feed of [...this.feeds]) feed.end();
  }

  since(seq) {
    return [...this.events.values()].filter((event) => parseInt(event.seq, 10) > seq);
  }
}

function parseSince(events, text) {
  if (text === 'now') return events.seq;
  if (!text || text === '0') return 0;
  const match = SEQ.exec(text);
  if (!match) throw badRequest("Malformed sequence supplied in 'since' parameter.");
  return Number(match[1]);
}

/** A live answer: continuous, or a longpoll that ends with the first event. */
class UpdatesFeed {
  constructor(events, { query, res }) {
    this.events = events;
    this.res = res;
    this.continuous = query.get('feed') === 'continuous';
    this.left = intParam(query, 'limit', Infinity);
    const beat = query.get('heartbeat');
    const timeout = intParam(query, 'timeout', DEFAULT_TIMEOUT);
    events.feeds.add(this);
    if (!beat || beat === 'false') this.timer = setTimeout(() => this.end(), timeout);
    else {
      const ms = beat === 'true' ? DEFAULT_TIMEOUT : intParam(query, 'heartbeat');
      this.timer = setInterval(() => res.write('\n'), Math.max(ms, 50));
    }
    res.on('close', () => this.#clear());
    res.writeHead(200, baseHeaders(res.req));
    if (this.continuous) res.flushHeaders();
    else res.write('{"results":[\n');
  }

  /** Sends what has already happened. */
  begin(past) {
    for (const event of past) this.send(event);
  }

  send(event) {
    if (this.stopped) return;
    this.last = event.seq;
    this.res.write(JSON.stringify(event) + (this.continuous ? '\n' : ''));
    if (this.res.writableLength > MAX_UNSENT) return this.res.destroy();
    if (--this.left <= 0 || !this.continuous) this.end();
    else this.timer.refresh();
  }

  end() {
    if (this.stopped) return;
    this.#clear();
    const last = JSON.stringify(this.last || this.events.current());
    this.res.end(this.continuous ? `{"last_seq":${last}}\n` : `\n],\n"last_seq":${last}}\n`);
  }

  #clear() {
    this.stopped = true;
    this.events.feeds.delete(this);
    clearTimeout(this.timer);
  }
}

/** GET /_db_updates. */
function handleDbUpdates({ databases, query, req, res }) {
  allow(req, 'GET');
  const { events } = databases;
  const feed = query.get('feed') || 'normal';
  if (feed === 'eventsource') throw notImplemented('feed=eventsource of _db_updates');
  if (!['normal', 'longpoll', 'continuous'].includes(feed)) {
    throw new HttpError(400, 'bad_request',
      'Supported `feed` types: normal, continuous, longpoll');
  }
  const limit = intParam(query, 'limit', Infinity);
  const past = events.since(parseSince(events, query.get('since'))).slice(0, limit);
  if (feed === 'continuous' || (feed === 'longpoll' && !past.length)) {
    return new UpdatesFeed(events, { query, res }).begin(past);
  }
  const last = past.length ? past[past.length - 1].seq : events.current();
  res.writeHead(200, baseHeaders(req));
  res.end(`${JSON.stringify({ results: past, last_seq: last })}\n`);
}

module.exports = { DatabaseEvents, handleDbUpdates };
