/** Configuration of the proxy. Times are milliseconds. */
import { commonConfig } from '@lakebase/service-kit';
import { type Static, Type } from 'typebox';

export const proxyConfigSchema = Type.Object(
  {
    ...commonConfig,
    /** Address and port for Postgres clients. */
    listenHost: Type.String({ default: '127.0.0.1' }),
    listenPort: Type.Integer({ minimum: 0, maximum: 65_535 }),
    managerUrl: Type.String(),
    /** Where it hears that a key went, to have what is left of that project's sessions overwritten. */
    keyManagerUrl: Type.Union([Type.String(), Type.Null()], { default: null }),
    /** Holds the self-signed certificate when `tls` names none. */
    dataDir: Type.String(),
    /** PEM files; null: a self-signed certificate made once and kept in dataDir. */
    tls: Type.Union([Type.Null(), Type.Object({ certFile: Type.String(), keyFile: Type.String() }, { additionalProperties: false })], {
      default: null,
    }),
    /** Who must use TLS: everybody, everybody who does not come from this machine, nobody. */
    requireTls: Type.Union([Type.Literal('always'), Type.Literal('remote'), Type.Literal('never')], { default: 'remote' }),
    /** When set, an SNI name routes only if it ends in this domain. */
    domain: Type.Union([Type.Null(), Type.String()], { default: null }),
    /** Which replication connections may pass. A physical standby's name counts for the commit quorum, so `all` trusts every
     *  role with the REPLICATION attribute with durability. */
    replication: Type.Union([Type.Literal('none'), Type.Literal('logical'), Type.Literal('all')], { default: 'logical' }),
    /** Roles no client may become, whatever the Manager says. */
    reservedRoles: Type.Array(Type.String(), { default: [] }),
    maxConnections: Type.Integer({ minimum: 1, default: 20_000 }),
    /** From accept to the end of authentication. */
    authTimeoutMs: Type.Integer({ minimum: 1, default: 60_000 }),
    /** How long a client is held while its compute starts. */
    wakeTimeoutMs: Type.Integer({ minimum: 1, default: 120_000 }),
    /** How old an answer of the Manager may be that is used while the Manager does not answer. */
    staleAfterMs: Type.Integer({ minimum: 0, default: 600_000 }),
  },
  { additionalProperties: false },
);
export type ProxyConfig = Static<typeof proxyConfigSchema>;
