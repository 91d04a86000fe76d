'use strict';

/*
 * node posts.js URL HEADERS FROM TO STEP POSTS: writes new public posts straight into CouchDB, so
 * many for each STEPth user from FROM to TO; makes their databases. Prints the databases' names.
 */

const fs = require('fs');

const [url, headersFile] = process.argv.slice(2);
const [from, to, step, posts] = process.argv.slice(4).map(Number);

const AT_ONCE = 8;
const TEXT = 'All work and no play. '.repeat(8);

const [, name, value] = fs.readFileSync(headersFile, 'utf8').match(/^([^:]+): (.*)$/m);
const headers = { [name]: value, 'Content-Type': 'application/json' };
const now = Date.now();

async function ask(method, path, body, accepted) {
  const answer = await fetch(`${url}/${path}`, { method, headers, body });
  const text = await answer.text();
  if (!accepted.includes(answer.status)) throw new Error(`${method} ${path}: ${text}`);
}

/** The newest posts of all are of many users. */
function post(n, k) {
  return {
    _id: `posts/${now}-${k}`,
    type: 'post',
    collection: 'posts',
    createdAt: now + 100000 * k + n,
    author: { name: 'Jack', city: 'Boulder' },
    content: TEXT,
    acl: { global: true },
  };
}

async function write(n) {
  const db = `userdb-${Buffer.from(`did:vibe:poster${n}`).toString('hex')}`;
  const docs = Array.from({ length: posts }, (_, k) => post(n, k));

  await ask('PUT', `${db}?q=1`, undefined, [201, 202, 412]);
  await ask('POST', `${db}/_bulk_docs`, JSON.stringify({ docs }), [201, 202]);
  process.stdout.write(`${db}\n`);
}

let next = from;

async function work() {
  while (next <= to) {
    const n = next;
    next += step;
    await write(n);
  }
}

Promise.all(Array.from({ length: AT_ONCE }, work)).catch((error) => {
  process.stderr.write(`${error.message}\n`);
  process.exit(1);
});
