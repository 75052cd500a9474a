/** Storage faults, the short form: the pageserver dies on the way into the object store, the store fails and goes away, a disk is lost. The long form with
 *  every place is `npm run chaos -- --storage`. B14 is in services/pageserver/src/bad-pages.pg.test.ts, B15 in bad-input-storage.ts. */
import { after, before, describe, it } from 'node:test';
import { StorageFaults } from './storage-faults.ts';

describe('storage faults', () => {
  let faults: StorageFaults;
  before(async () => {
    faults = await StorageFaults.start();
  });
  after(() => faults[Symbol.asyncDispose]());

  it('F4: killed between the files and the index that names them, locally and in the store', async () => {
    await faults.killPageserverAt('pageserver.flush.before-index');
    await faults.killPageserverAt('pageserver.upload.before-index');
  });
  it('F22: a store that fails often, and says so of puts it did', () => faults.failingObjectStore());
  it('F23: no store at all: commits and local reads go on, uploads when it is back', () => faults.loseObjectStore());
  it('F13: the pageserver loses its disk: everything comes back', () => faults.losePageserverDisk());
  it('everything stored is as it was written', () => faults.scrubbed('after all of it'));
});
