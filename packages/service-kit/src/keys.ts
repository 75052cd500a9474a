/** Where a storage service gets its data keys from, by its configuration (docs/flows/key-path.md). */
import { KeyManagerClient, type ReEncryptionReport, internalToken } from '@lakebase/api';
import { LakebaseError, type Logger } from '@lakebase/base';
import type { ProjectUid } from '@lakebase/ids';
import { KeyRing, type KeySource, plainKeys } from '@lakebase/keys';
import { Type } from 'typebox';

/** Spread into the configuration of a service that stores data. */
export const keyConfig = {
  /** The key manager, where data keys come from. */
  keyManagerUrl: Type.Union([Type.String(), Type.Null()], { default: null }),
  /** Tests only: nothing is encrypted, so that a scan for plaintext can be seen to find it. */
  testPlaintext: Type.Boolean({ default: false }),
};
export interface KeyConfig {
  readonly keyManagerUrl: string | null;
  readonly testPlaintext: boolean;
}

/** Tells the key manager that no reference of a KEK version below `below` is left here. */
export type Retire = (project: string, below: number) => Promise<void>;

/** How far this service is with a re-encryption. */
export type ReportReEncryption = (project: string, report: Omit<ReEncryptionReport, 'service'>) => Promise<void>;

export interface ServiceKeys {
  readonly source: KeySource;
  readonly retire: Retire;
  readonly reportReEncryption?: ReportReEncryption;
  readonly client: KeyManagerClient | undefined;
}

export function openKeys(config: KeyConfig & { readonly id: string }, secret: string, log: Logger): ServiceKeys {
  if (config.testPlaintext) {
    log.warn({}, 'testPlaintext is set: data is stored UNENCRYPTED; this is for tests only');
    return { source: plainKeys, retire: async () => {}, client: undefined };
  }
  if (config.keyManagerUrl === null)
    throw new LakebaseError('CONFIG', 'keyManagerUrl is not set: name the key manager; without keys nothing can be stored');
  const client = new KeyManagerClient({ baseUrl: config.keyManagerUrl, token: internalToken(secret, 'service') });
  return {
    client,
    source: new KeyRing({ client, log }),
    reportReEncryption: async (project, report) =>
      void (await client.reportReEncryption(project as ProjectUid, { service: config.id, ...report })),
    retire: async (project, below) => void (await client.retire(project as ProjectUid, config.id, below)),
  };
}
