#!/usr/bin/env node
'use strict';

/*
 * The embedded CouchDB: a small server that speaks the part of CouchDB's API which the module and
 * PouchDB's replication use, over PouchDB and LevelDB. It is no CouchDB, and does not say so.
 *
 *   COUCH_ADMIN=user:password node server.js [--port 5984] [--host 127.0.0.1] [--dir data]
 *                                            [--max-open 200]
 *
 * With --port 0 it takes a free port. It prints one line, "ready on HOST:PORT", when it listens.
 */

const http = require('http');
const path = require('path');
const { parseArgs } = require('util');
const { authenticator } = require('./auth');
const { Databases } = require('./databases');
const { sendError } = require('./http');
const { router } = require('./routes');
const { DatabaseEvents } = require('./updates');

const KEEP_ALIVE_MS = 75000;
const STOP_MS = 5000;
const BACKLOG = 1024;

/** Ends with one line on stderr. */
function fail(message) {
  process.stderr.write(`vibe-embedded-couch: ${message}\n`);
  process.exit(1);
}

function numberOption(values, name, low, high) {
  const number = Number(values[name]);
  if (!/^\d+$/.test(values[name]) || number < low || number > high) {
    fail(`--${name} must be a number from ${low} to ${high}, not "${values[name]}"`);
  }
  return number;
}

function readOptions() {
  try {
    const { values } = parseArgs({
      options: {
        port: { type: 'string', default: '5984' },
        host: { type: 'string', default: '127.0.0.1' },
        dir: { type: 'string', default: 'data' },
        'max-open': { type: 'string', default: '200' },
      },
    });
    return {
      port: numberOption(values, 'port', 0, 65535),
      host: values.host,
      directory: path.resolve(values.dir),
      maxOpen: numberOption(values, 'max-open', 1, 100000),
    };
  } catch (error) {
    return fail(error.message);
  }
}

function readCredentials() {
  const credentials = process.env.COUCH_ADMIN || '';
  delete process.env.COUCH_ADMIN;
  if (!/^[^:]+:.+$/s.test(credentials)) {
    fail('set COUCH_ADMIN=user:password in the environment; there is no access without it');
  }
  return credentials;
}

/** The HTTP server over a router. */
function makeServer(route) {
  const options = { keepAliveTimeout: KEEP_ALIVE_MS, maxHeaderSize: 65536 };
  const server = http.createServer(options, (req, res) => {
    req.on('error', () => {});
    res.on('error', () => {});
    Promise.resolve(route(req, res)).catch((error) => sendError(res, error));
  });
  server.on('clientError', (error, socket) => {
    if (!socket.writable) return socket.destroy();
    socket.end('HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n');
  });
  return server;
}

function listen(server, { port, host }) {
  return new Promise((resolve, reject) => {
    server.on('error', reject);
    server.listen({ port, host, backlog: BACKLOG }, resolve);
  });
}

/** Lets what is under way end, then closes the databases. */
async function stop(server, databases) {
  const closed = new Promise((resolve) => server.close(resolve));
  databases.stopFeeds();
  server.closeIdleConnections();
  const patience = setTimeout(() => server.closeAllConnections(), STOP_MS);
  await closed;
  clearTimeout(patience);
  await databases.stop();
  process.exit(0);
}

function describe(error, { host, port, directory }) {
  if (error.code === 'EADDRINUSE') return `${host}:${port} is in use`;
  if (error.syscall === 'listen' || error.syscall === 'getaddrinfo') {
    return `cannot listen on ${host}:${port}: ${error.code}`;
  }
  const { message } = error.cause || error;
  if (/\/LOCK: |already held/.test(message)) return `${directory} is in use by another server`;
  return `cannot use ${directory}: ${message.split('\n')[0]}`;
}

async function main() {
  process.on('unhandledRejection', (error) => console.error(error));
  const options = readOptions();
  const authenticate = authenticator(readCredentials());
  const databases = new Databases(options.directory, options.maxOpen, new DatabaseEvents());
  const server = makeServer(router(databases, authenticate));
  try {
    await databases.start();
    await listen(server, options);
  } catch (error) {
    fail(describe(error, options));
  }
  for (const signal of ['SIGTERM', 'SIGINT']) {
    process.once(signal, () => stop(server, databases).catch((error) => fail(error.message)));
  }
  process.stdout.write(`ready on ${options.host}:${server.address().port}\n`);
}

main();
