import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after } from 'node:test';
import { decorate } from './decorate.ts';
import { DirectoryStore } from './directory-store.ts';
import { MemoryStore, registerStoreConformance } from './testing/index.ts';

const dir = mkdtempSync(join(tmpdir(), 'lb-objectstore-'));
after(() => rmSync(dir, { recursive: true, force: true }));

registerStoreConformance('directory', async () => new DirectoryStore(join(dir, 'plain')));
registerStoreConformance('directory, decorated', async () => decorate(new DirectoryStore(join(dir, 'decorated')), {}).store);
registerStoreConformance('memory', async () => new MemoryStore());
