/** What an operator says about keys: `<home>/keymanager.json`, settings of the key manager (docs/operating/kms.md). The rest of its
 *  configuration is the supervisor's: addresses, directories, who the storage services are. */
import { existsSync, readFileSync } from 'node:fs';
import { LakebaseError } from '@lakebase/base';

/** Values are checked by the key manager's own schema. */
export const KEY_SETTINGS = [
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
] as const;

export function readKeySettings(file: string): Readonly<Record<string, unknown>> {
  if (!existsSync(file)) return {};
  let settings: unknown;
  try {
    settings = JSON.parse(readFileSync(file, 'utf8'));
  } catch (cause) {
    throw new LakebaseError('CONFIG', `cannot read ${file}: ${(cause as Error).message}`, { cause });
  }
  if (typeof settings !== 'object' || settings === null || Array.isArray(settings))
    throw new LakebaseError('CONFIG', `${file} must hold a JSON object with settings of the key manager`);
  const unknown = Object.keys(settings).filter((name) => !(KEY_SETTINGS as readonly string[]).includes(name));
  if (unknown.length > 0)
    throw new LakebaseError('CONFIG', `${file}: there is no setting ${unknown.join(', ')}; there are ${KEY_SETTINGS.join(', ')}`);
  return settings as Record<string, unknown>;
}
