'use strict';

/*
 * The databases: their names and directories, which of them have their LevelDB open (at most
 * `maxOpen`; the least recently used is closed, never one in use), creating and deleting.
 *
 * On disk:  DIR/databases/<name, '/' as ','>~<identity>   one LevelDB each
 *           DIR/trash/                                    deleted, being removed
 *           DIR/server                                    the lock and the server's uuid
 */

const crypto = require('crypto');
const fs = require('fs/promises');
const path = require('path');
const leveldown = require('leveldown');
const { HttpError, notFound } = require('./http');
const { Store } = require('./store');
const { WriteQueue } = require('./writes');

const NAME = /^[a-z][a-z0-9_$()+/-]{0,237}$/;
const SYSTEM_NAMES = new Set(['_users', '_replicator', '_global_changes']);
const DIRECTORY = /^(.+)~([0-9a-f]{16})$/;

const noDatabase = () => notFound('Database does not exist.');
const isName = (name) => NAME.test(name) || SYSTEM_NAMES.has(name);
const directoryName = (name, identity) => `${name.replaceAll('/', ',')}~${identity}`;

function illegalName(name) {
  return new HttpError(400, 'illegal_database_name', `Name: '${name}'. Only lowercase characters `
    + '(a-z), digits (0-9), and any of the characters _, $, (, ), +, -, and / are allowed. '
    + 'Must begin with a letter.');
}

/** Makes a directory and those above it. (Node's own way of doing so never ends in /proc.) */
async function makeDirectory(directory) {
  try {
    await fs.mkdir(directory);
  } catch (error) {
    const parent = path.dirname(directory);
    if (error.code === 'EEXIST' && (await fs.stat(directory)).isDirectory()) return;
    if (error.code !== 'ENOENT' || parent === directory) throw error;
    await makeDirectory(parent);
    await fs.mkdir(directory);
  }
}

/** One database, whether its LevelDB is open or not. */
class Database {
  constructor(databases, name, identity) {
    this.databases = databases;
    this.name = name;
    this.identity = identity;
    this.directory = path.join(databases.directory, directoryName(name, identity));
    this.store = null;        // a promise of the open Store
    this.closing = null;      // a promise while it is being closed
    this.made = null;         // a promise of its directory while that is being made
    this.users = 0;           // how many use the Store now
    this.gone = false;
    this.lastInfo = null;     // what info() said when the Store was closed
    this.onIdle = [];         // resolvers of those who wait until nobody uses it
    this.feeds = new Set();   // live _changes feeds: they hold no Store while they wait
    this.indexes = null;      // cache of indexes.js
    this.builds = new Map();  // state of index builds, see indexes.js
    this.writes = new WriteQueue(this);
  }

  /** Runs `work` with the open Store; it stays open for as long as `work` takes. */
  async use(work) {
    const store = await this.databases.acquire(this);
    try {
      return await work(store);
    } finally {
      this.databases.release(this);
    }
  }

  /** Its counts; a database that is closed is not opened for them again. */
  info() {
    if (this.gone) throw noDatabase();
    if (!this.store && this.lastInfo) return this.lastInfo;
    return this.use((store) => store.info());
  }

  /** To be called after each acknowledged write. */
  changed() {
    for (const feed of this.feeds) feed.wake();
    this.databases.events.add(this.name, 'updated');
  }
}

class Databases {
  /**
   * @param {string} root the server's directory
   * @param {number} maxOpen how many LevelDBs may be open
   * @param {import('./updates').DatabaseEvents} events
   */
  constructor(root, maxOpen, events) {
    this.root = root;
    this.directory = path.join(root, 'databases');
    this.trash = path.join(root, 'trash');
    this.maxOpen = maxOpen;
    this.events = events;
    this.byName = new Map();
    this.open = new Set();    // open ones, least recently used first
    this.closings = 0;        // how many are being closed
    this.slots = 0;           // open, opening or closing
    this.waiting = [];        // resolvers of those who wait for a slot
  }

  /** Takes the directory: one server only, told by LevelDB's own lock. */
  async start() {
    await makeDirectory(this.directory);
    this.lock = leveldown(path.join(this.root, 'server'));
    await new Promise((resolve, reject) => {
      this.lock.open((error) => (error ? reject(error) : resolve()));
    });
    this.uuid = await this.#serverUuid();
    await fs.rm(this.trash, { recursive: true, force: true });
    await fs.mkdir(this.trash);
    for (const entry of await fs.readdir(this.directory)) {
      const match = DIRECTORY.exec(entry);
      if (!match) continue;
      const name = match[1].replaceAll(',', '/');
      this.byName.set(name, new Database(this, name, match[2]));
      this.events.add(name, 'updated');
    }
    for (const name of ['_users', '_replicator']) {
      if (!this.byName.has(name)) await this.create(name);
    }
  }

  #serverUuid() {
    return new Promise((resolve, reject) => {
      this.lock.get('uuid', { asBuffer: false }, (error, known) => {
        if (!error) return resolve(known);
        const uuid = crypto.randomBytes(16).toString('hex');
        this.lock.put('uuid', uuid, (failed) => (failed ? reject(failed) : resolve(uuid)));
      });
    });
  }

  /** Ends all live answers. */
  stopFeeds() {
    this.events.stop();
    for (const db of this.byName.values()) for (const feed of [...db.feeds]) feed.stop();
  }

  /** Closes everything; nothing may be in use any more. */
  async stop() {
    await Promise.all([...this.open].map((db) => this.#close(db)));
    await new Promise((resolve) => this.lock.close(() => resolve()));
  }

  /** All names, sorted. */
  names() {
    return [...this.byName.keys()].sort();
  }

  /** The database of a name, or undefined. */
  find(name) {
    return this.byName.get(name);
  }

  /** The database of a name, or 404. */
  get(name) {
    const db = this.byName.get(name);
    if (!db) throw noDatabase();
    return db;
  }

  /** Makes a database. Its LevelDB is made at first use. */
  async create(name) {
    if (!isName(name)) throw illegalName(name);
    if (this.byName.has(name)) {
      throw new HttpError(412, 'file_exists',
        'The database could not be created, the file already exists.');
    }
    const db = new Database(this, name, crypto.randomBytes(8).toString('hex'));
    this.byName.set(name, db);
    db.made = fs.mkdir(db.directory);
    try {
      await db.made;
    } catch (error) {
      this.byName.delete(name);
      throw error;
    } finally {
      db.made = null;
    }
    this.events.add(name, 'created');
  }

  /** Deletes a database: at once for all who come, its files when the last user is done. */
  async remove(name) {
    const db = this.get(name);
    this.byName.delete(name);
    db.gone = true;
    for (const feed of [...db.feeds]) feed.stop();
    while (db.users) await this.#idle(db);
    if (this.open.has(db)) await this.#close(db);
    if (db.closing) await db.closing;
    const trash = path.join(this.trash, path.basename(db.directory));
    await fs.rename(db.directory, trash);
    this.events.add(name, 'deleted');
    fs.rm(trash, { recursive: true, force: true }).catch((error) => console.error(error));
  }

  // ---- which are open ---------------------------------------------------------------------

  /** Opens the database if need be and keeps it open until `release`. */
  async acquire(db) {
    if (db.gone) throw noDatabase();
    db.users++;
    try {
      if (!db.store) db.store = this.#open(db);
      return await db.store;
    } catch (error) {
      db.store = null;
      this.release(db);
      throw error;
    }
  }

  release(db) {
    db.users--;
    if (db.users) return;
    if (this.open.delete(db)) this.open.add(db);
    for (const resolve of db.onIdle.splice(0)) resolve();
    this.#serveWaiting();
  }

  /** Closes the database as soon as nobody uses it: the next one opens it again. */
  async reopen(db) {
    while (db.users) await this.#idle(db);
    if (this.open.has(db)) await this.#close(db);
  }

  /** When nobody used it; somebody may use it again by the time one hears of that. */
  #idle(db) {
    return new Promise((resolve) => db.onIdle.push(resolve));
  }

  async #open(db) {
    if (db.made) await db.made;
    if (db.closing) await db.closing;
    await this.#takeSlot();
    try {
      const store = await Store.open(db.directory);
      this.open.add(db);
      return store;
    } catch (error) {
      this.#giveSlot();
      throw error;
    }
  }

  async #close(db) {
    this.open.delete(db);
    this.closings++;
    const store = db.store;
    db.store = null;
    db.closing = store.then(async (opened) => {
      db.lastInfo = await opened.info();
      await opened.close();
    });
    try {
      await db.closing;
    } finally {
      db.closing = null;
      this.closings--;
      this.#giveSlot();
    }
  }

  #takeSlot() {
    if (this.slots < this.maxOpen) {
      this.slots++;
      return Promise.resolve();
    }
    const promise = new Promise((resolve) => this.waiting.push(resolve));
    this.#serveWaiting();
    return promise;
  }

  #giveSlot() {
    const next = this.waiting.shift();
    if (next) next();
    else this.slots--;
  }

  /** While somebody waits for a slot, closes what is idle. */
  #serveWaiting() {
    if (this.waiting.length <= this.closings) return;
    const idle = this.#leastRecentlyUsed();
    if (idle) this.#close(idle).catch((error) => console.error(error));
  }

  /** The longest idle database; one with a live feed only if there is no other. */
  #leastRecentlyUsed() {
    let watched = null;
    for (const db of this.open) {
      if (db.users) continue;
      if (!db.feeds.size) return db;
      watched = watched || db;
    }
    return watched;
  }
}

module.exports = { Databases };
