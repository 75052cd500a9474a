/** The local key file behind the interface of the fakes: what happens to a key happens to its file. */
import { randomBytes } from 'node:crypto';
import { chmodSync, mkdtempSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { KmsEnvironment, KmsKeyConfig } from '../types.ts';
import type { KmsHarness } from './fake-kms.ts';

export class LocalHarness implements KmsHarness {
  readonly provider = 'LOCAL';
  readonly directory = mkdtempSync(join(tmpdir(), 'lb-kms-local-'));
  readonly setFaults = null;

  environment(): KmsEnvironment {
    return { rootKeyPath: join(this.directory, 'root.key') };
  }

  createKey(name = `key-${randomBytes(4).toString('hex')}`): KmsKeyConfig {
    const path = join(this.directory, name);
    writeFileSync(path, `${randomBytes(32).toString('hex')}\n`, { mode: 0o600 });
    return { provider: 'LOCAL', key: path };
  }

  disable(key: string): void {
    renameSync(key, `${key}.away`);
  }
  enable(key: string): void {
    renameSync(`${key}.away`, key);
  }
  scheduleDeletion(key: string): void {
    this.disable(key);
  }
  cancelDeletion(key: string): void {
    this.enable(key);
  }
  destroy(key: string): void {
    rmSync(key);
  }
  deny(key: string): void {
    this.disable(key);
  }
  allow(key: string): void {
    this.enable(key);
  }
  /** A key file has one version; rotation is another file. */
  rotate(): void {}

  makeReadableByAll(key: string): void {
    chmodSync(key, 0o644);
  }

  close(): Promise<void> {
    rmSync(this.directory, { recursive: true, force: true });
    return Promise.resolve();
  }
}
