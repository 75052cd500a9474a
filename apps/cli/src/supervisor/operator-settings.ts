/** What an operator may say about services beyond where they are: one JSON file for each kind of service in the home directory, read at every start; it
 *  need not be there. A name that is not listed here is an error at once; values are checked by the service's own schema. The rest of a service's
 *  configuration is the supervisor's: addresses, directories, who the others are. */
import { existsSync, readFileSync } from 'node:fs';
import { LakebaseError } from '@lakebase/base';

const SCRUB_SETTINGS = ['scrubIntervalMs', 'scrubBytesPerSecond', 'scrubOrphanAgeMs'] as const;

/** `<home>/keymanager.json` (docs/operating/kms.md). */
export const KEY_SETTINGS: readonly string[] = [
  'probeIntervalMs',
  'probeTimeoutMs',
  'versionCheckMs',
  'kekCacheSeconds',
  'graceSeconds',
  'rotateKekDays',
  'auditProbes',
  'kmsEndpoints',
  'caCertificatesFile',
  'allowedHosts',
  'auditKeepDays',
  'auditKeepMegabytes',
  'requireKeyguard',
];

/** `<home>/safekeepers.json` (docs/operating/wal.md), the same for all of them. */
export const SAFEKEEPER_SETTINGS: readonly string[] = [
  'walDiskBytes',
  'trimAfterBytes',
  'offloadIdleMs',
  'offloadAgeMs',
  'offloadTailMs',
  'offloadTakeoverMs',
  ...SCRUB_SETTINGS,
];

/** `<home>/pageservers.json` (docs/operating/pageserver.md), the same for all of them. */
export const PAGESERVER_SETTINGS: readonly string[] = [
  'openLayerBytes',
  'idleFlushMs',
  'uploadBytes',
  'uploadMs',
  'uploadAfterSuspendMs',
  'diskReserveBytes',
  'layerCacheBytes',
  'pageCacheBytes',
  'frameCacheBytes',
  'detachAfterMs',
  'reEncryptBytesPerSecond',
  ...SCRUB_SETTINGS,
];

export function readOperatorSettings(file: string, whose: string, names: readonly string[]): Readonly<Record<string, unknown>> {
  if (!existsSync(file)) return {};
  let settings: unknown;
  try {
    settings = JSON.parse(readFileSync(file, 'utf8'));
  } catch (cause) {
    throw new LakebaseError('CONFIG', `cannot read ${file}: ${(cause as Error).message}`, { cause });
  }
  if (typeof settings !== 'object' || settings === null || Array.isArray(settings))
    throw new LakebaseError('CONFIG', `${file} must hold a JSON object with settings of ${whose}`);
  const unknown = Object.keys(settings).filter((name) => !names.includes(name));
  if (unknown.length > 0)
    throw new LakebaseError('CONFIG', `${file}: there is no setting ${unknown.join(', ')}; there are ${names.join(', ')}`);
  return settings as Record<string, unknown>;
}
