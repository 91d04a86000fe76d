'use strict';

/*
 * node documents.js KIND FROM TO: prints the documents with these numbers.
 *
 *   public   an array for POST /data/<collection>
 *   spread   a body for _bulk_docs of `global`: copies as src/ngx_http_vibe_copy.h describes them,
 *            restricted to one reader; ten lie between two of the public ones
 *   newer    the same, but newer than all public ones
 */

const [kind, from, to] = [process.argv[2], ...process.argv.slice(3).map(Number)];

const OWNER = 'did:vibe:somebody';
const READER = 'did:vibe:other';
const TEXT = 'All work and no play. '.repeat(8);
const CREATED_AT = {
  public: (n) => 1000 * n,
  spread: (n) => 100 * n + 50,
  newer: (n) => 1e9 + n,
};

function document(n, acl) {
  return {
    title: `Document ${n}`,
    createdAt: CREATED_AT[kind](n),
    author: { name: 'Jack', city: 'Boulder' },
    tags: ['a', 'b'],
    text: TEXT,
    acl,
  };
}

function copy(n) {
  return {
    _id: `${OWNER}:${kind}/${String(n).padStart(6, '0')}`,
    ...document(n, { read: { allow: [READER] } }),
    vibe_access: 'restricted',
    vibe_read: [READER],
    vibe_deny: [],
    collection: kind,
    vibe_v: 1,
    vibe_rev: '1-967a00dff5e02add41819138abb3284d',
    vibe_owner: OWNER,
    vibe_db: `userdb-${Buffer.from(OWNER).toString('hex')}`,
    vibe_acl: 1,
  };
}

const numbers = Array.from({ length: to - from + 1 }, (_, i) => from + i);

process.stdout.write(JSON.stringify(kind === 'public'
  ? numbers.map((n) => document(n, { global: true }))
  : { docs: numbers.map(copy) }));
