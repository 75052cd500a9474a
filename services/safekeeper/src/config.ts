/** Configuration of a safekeeper process. */
import { commonConfig, keyConfig, objectStoreConfig, scrubConfig } from '@lakebase/service-kit';
import { type Static, type TObject, Type } from 'typebox';

const address = Type.Object(
  {
    id: Type.String({ minLength: 1, maxLength: 64 }),
    httpUrl: Type.String({ minLength: 1 }),
    pgHost: Type.String({ minLength: 1 }),
    pgPort: Type.Integer({ minimum: 0, maximum: 65535 }),
  },
  { additionalProperties: false },
);

const keys = {
  ...commonConfig,
  /** Address and port of the WAL service (Postgres replication protocol). */
  pgHost: Type.String({ default: '127.0.0.1' }),
  pgPort: Type.Integer({ minimum: 0, maximum: 65535 }),
  /** Directory with one subdirectory per project. */
  dataDir: Type.String({ minLength: 1 }),
  ...keyConfig,
  ...objectStoreConfig,
  ...scrubConfig,
  /** The other members. */
  peers: Type.Array(address, { maxItems: 8 }),
  /** Safekeepers that are not members of what nobody has configured; others are learned with configurations. */
  nodes: Type.Array(address, { maxItems: 16, default: [] }),
  /** WAL kept behind what the pageserver has and, with an object store, that has too, else all peers; 0 keeps everything. */
  trimAfterBytes: Type.Integer({ minimum: 0, default: 1024 * 1024 * 1024 }),
  /** Disk that WAL may take (disk-budget.ts); null: what is free, less a reserve. */
  walDiskBytes: Type.Union([Type.Integer({ minimum: 64 * 1024 * 1024 }), Type.Null()], { default: null }),
  /** When WAL goes to the object store (offload.ts). */
  offloadIdleMs: Type.Integer({ minimum: 10, default: 10_000 }),
  offloadAgeMs: Type.Integer({ minimum: 10, default: 60_000 }),
  offloadTailMs: Type.Integer({ minimum: 0, default: 300_000 }),
  offloadTakeoverMs: Type.Integer({ minimum: 10, default: 60_000 }),
  /** Old WAL is encrypted anew at this rate at most, when that is asked for. */
  reEncryptBytesPerSecond: Type.Integer({ minimum: 1024, default: 32 * 1024 * 1024 }),
  /** Recent WAL of a timeline kept in memory while it is in use. */
  ringBytes: Type.Integer({ minimum: 0, default: 4 * 1024 * 1024 }),
};

export const safekeeperConfig: TObject<typeof keys> = Type.Object(keys, { additionalProperties: false });
export type SafekeeperConfig = Static<typeof safekeeperConfig>;
