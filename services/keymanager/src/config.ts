/** Configuration of the key manager (keys common to all services: service-kit commonConfig). */
import { commonConfig, objectStoreConfig } from '@lakebase/service-kit';
import { type Static, Type } from 'typebox';

const provider = Type.Partial(
  Type.Object(
    { AWS_KMS: Type.String(), AZURE_KEY_VAULT: Type.String(), GCP_KMS: Type.String(), VAULT_TRANSIT: Type.String() },
    { additionalProperties: false },
  ),
);

export const keyManagerConfig = Type.Object(
  {
    ...commonConfig,
    ...objectStoreConfig,
    /** Records of projects and the audit log. Holds wrapped keys and credentials for KMS: mode 0700. */
    dataDir: Type.String(),
    /** The installation root key; made when missing. */
    rootKeyFile: Type.String(),
    /** Every project's KEK is unwrapped at its KMS this often. */
    probeIntervalMs: Type.Integer({ default: 5_000, minimum: 100 }),
    /** One probe that takes longer counts as unreachable. */
    probeTimeoutMs: Type.Integer({ default: 4_000, minimum: 100 }),
    /** How often the KMS is asked whether the CMK has a newer version. */
    versionCheckMs: Type.Integer({ default: 60_000, minimum: 100 }),
    /** An unwrapped KEK is wiped this long after the last success of its KMS. */
    kekCacheSeconds: Type.Integer({ default: 300, minimum: 1 }),
    /** How long an unreachable KMS is ridden out where the project says nothing else. */
    graceSeconds: Type.Integer({ default: 600, minimum: 0 }),
    /** Services lock every project when they did not hear from us for this long. */
    leaseSeconds: Type.Integer({ default: 8, minimum: 2 }),
    /** Services that must report that they hold no reference of an old KEK before it is destroyed. */
    storageServices: Type.Array(Type.String({ minLength: 1, maxLength: 64 }), { default: [] }),
    /** A new KEK for a project whose newest is older than this; 0: only on demand. */
    rotateKekDays: Type.Integer({ default: 0, minimum: 0 }),
    /** One audit line for each probe that succeeds, or one that counts them every five minutes. Everything else always has its line. */
    auditProbes: Type.Union([Type.Literal('each'), Type.Literal('summary')], { default: 'each' }),
    /** Requests to a provider go here instead: private endpoints, emulators. */
    kmsEndpoints: Type.Unsafe<Static<typeof provider>>({ ...provider, default: {} }),
    /** PEM file of authorities trusted besides the system's, for endpoints of AWS, Azure and Vault. */
    caCertificatesFile: Type.Union([Type.String(), Type.Null()], { default: null }),
    /** Hosts where keys may be: `kms.eu-central-1.amazonaws.com`, `*.vault.azure.net`, `vault.internal:8200`. Without any: every host but
     *  link-local addresses and the metadata services of clouds. */
    allowedHosts: Type.Array(Type.String({ minLength: 1, maxLength: 255 }), { default: [] }),
    /** Files of the audit log whose last line is older are removed; 0: never by age. */
    auditKeepDays: Type.Integer({ default: 400, minimum: 0 }),
    /** The oldest files of the audit log are removed while there is more; 0: no limit. */
    auditKeepMegabytes: Type.Integer({ default: 0, minimum: 0 }),
    /** Refuse to start without native/keyguard. */
    requireKeyguard: Type.Boolean({ default: false }),
  },
  { additionalProperties: false },
);
export type KeyManagerConfig = Static<typeof keyManagerConfig>;
