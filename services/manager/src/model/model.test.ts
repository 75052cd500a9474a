/** Values of the Manager: ids, settings, durations, verifiers. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { RESOURCE_ID } from '@lakebase/ids';
import fc from 'fast-check';
import { formatDuration, parseDuration } from './duration.ts';
import { checkDatabaseName, checkRoleName, newSystemId, newUid, parseChild, requireId } from './names.ts';
import { generatePassword, scramVerifier } from './scram.ts';
import { checkPgSettings } from './settings.ts';

test('a verifier holds the keys of the example in RFC 7677', async () => {
  // Password, salt and iteration count of the RFC; the keys follow from its exchange.
  const verifier = await scramVerifier('pencil', Buffer.from('W22ZaJ0SNY7soEsUEjb6gQ==', 'base64'));
  assert.equal(
    verifier,
    'SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=',
  );
});

test('generated passwords have four classes and are safe in a URL', () => {
  for (let i = 0; i < 50; i++) {
    const password = generatePassword();
    assert.equal(encodeURIComponent(password), password);
    for (const part of [/[a-z]/, /[A-Z]/, /[0-9]/, /[-_.]/]) assert.match(password, part);
    assert.equal(password.length, 24);
  }
});

test('uids are DNS labels and system identifiers fit 63 bits', () => {
  for (let i = 0; i < 50; i++) {
    assert.match(newUid('ep'), RESOURCE_ID);
    const id = BigInt(newSystemId());
    assert.ok(id > 0n && id < 1n << 63n);
  }
});

test('resource names: only exact ones pass', () => {
  assert.deepEqual(parseChild('roles', 'projects/a/branches/b/roles/c', 'f'), { project: 'a', branch: 'b', id: 'c' });
  fc.assert(
    fc.property(fc.string(), (text) => {
      try {
        const { project, branch, id } = parseChild('roles', text, 'f');
        assert.equal(text, `projects/${project}/branches/${branch}/roles/${id}`);
      } catch (error) {
        assert.match((error as Error).message, /resource name/);
      }
    }),
  );
  for (const id of ['', 'A', '1a', 'a_b', 'a-', '../x', 'a'.repeat(64), undefined, 7]) assert.throws(() => requireId('project_id', id));
});

test('names Postgres keeps for itself are refused', () => {
  for (const name of ['postgres', 'pg_x', 'PG_X', 'public', 'databricks_superuser', '', 'a'.repeat(64), 'a\0b', 'a\nb'])
    assert.throws(() => checkRoleName(name), name);
  for (const name of ['postgres', 'template1', '']) assert.throws(() => checkDatabaseName(name), name);
  assert.equal(checkRoleName('Ünï "quoted"; DROP'), 'Ünï "quoted"; DROP');
});

test('durations', () => {
  assert.equal(parseDuration('f', '300s', { min: 0, max: 1000 }), 300);
  assert.equal(formatDuration(300), '300s');
  for (const text of ['300', '-1s', '1e3s', '2000s', 300, null, '1.5s'])
    assert.throws(() => parseDuration('f', text, { min: 0, max: 1000 }));
});

test('settings keep their values as text', () => {
  assert.deepEqual(checkPgSettings({ Work_Mem: '8MB', jit: false, 'auto_explain.log_min_duration': 5 }), {
    work_mem: '8MB',
    jit: 'false',
    'auto_explain.log_min_duration': '5',
  });
  assert.throws(() => checkPgSettings({ 'a b': 1 }));
  assert.throws(() => checkPgSettings({ work_mem: {} }));
  assert.throws(() => checkPgSettings([]));
});
