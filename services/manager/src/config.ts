/** Configuration of the Manager. One Manager per installation: a lock in the metadata database keeps a second one out. */
import { POSTGRES_MAJORS, commonConfig, objectStoreConfig } from '@lakebase/service-kit';
import { type Static, Type } from 'typebox';

const peer = Type.Object(
  { id: Type.String(), httpUrl: Type.String(), pgHost: Type.String(), pgPort: Type.Integer() },
  { additionalProperties: false },
);

const pageserver = Type.Object(
  { id: Type.String({ default: 'pageserver' }), httpUrl: Type.String(), pageHost: Type.String(), pagePort: Type.Integer() },
  { additionalProperties: false },
);

export const managerConfig = Type.Object(
  {
    /** `httpPort` is the port of the public API; the internal surface is on the same listener behind the service token. */
    ...commonConfig,
    ...objectStoreConfig,
    /** Embedded metadata database and its socket. */
    dataDir: Type.String(),
    /** Postgres that holds the metadata; null: one of the Manager's own under dataDir. */
    databaseUrl: Type.Union([Type.String(), Type.Null()], { default: null }),
    /** Prefix of a Postgres installation for the embedded database; null: the npm package of this platform. */
    postgresPrefix: Type.Union([Type.String(), Type.Null()], { default: null }),
    computeHostUrl: Type.String(),
    /** New projects go to the one that is the least full (docs/operating/pageserver.md). Ids are those of the pageservers' own configurations. */
    pageserver,
    morePageservers: Type.Array(pageserver, { default: [] }),
    safekeepers: Type.Array(peer, { minItems: 1, maxItems: 9 }),
    /** Safekeepers that hold nothing of new projects and stand ready to take another's place. */
    spareSafekeepers: Type.Array(peer, { maxItems: 16, default: [] }),
    /** The key manager; null only where nothing asks for keys (tests). */
    keyManagerUrl: Type.Union([Type.String(), Type.Null()], { default: null }),
    /** Where key files of `local_key_info` lie; the key manager reads them. */
    localKeysDir: Type.String({ default: '/nonexistent' }),
    /** Where clients reach the proxy: for connection strings and endpoint hosts. */
    proxyHost: Type.String({ default: 'localhost' }),
    proxyPort: Type.Integer({ minimum: 0, maximum: 65535 }),
    /** File the admin's personal access token is written to at the first start (mode 0600). */
    adminTokenFile: Type.String(),
    /** File the generated passwords of owner roles are written to (mode 0600); the database has only their verifiers. */
    credentialsFile: Type.String(),
    /** Who the admin token speaks as. */
    adminUser: Type.String({ default: 'admin@localhost' }),
    suspendTimeoutSeconds: Type.Integer({ minimum: 1, default: 300 }),
    /** Major versions projects may be created with; the first is the default. */
    pgVersions: Type.Array(Type.Integer({ minimum: 14, maximum: 99 }), { default: [...POSTGRES_MAJORS], minItems: 1 }),
    /** Stop all computes on an ordered stop of the Manager. After a crash they are adopted instead. */
    suspendOnStop: Type.Boolean({ default: true }),
  },
  { additionalProperties: false },
);

export type ManagerConfig = Static<typeof managerConfig>;
