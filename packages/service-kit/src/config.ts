/** Service configuration: one JSON file named by `--config`, checked against a TypeBox schema. Unknown keys are refused.
 *  Keys common to all services are in {@link CommonConfig}; each service documents its own beside its schema. */
import { readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { LakebaseError } from '@lakebase/base';
import { type Static, type TObject, type TSchema, Type } from 'typebox';
import { Value } from 'typebox/value';

/** Spread into a service's own `Type.Object({...commonConfig, …}, { additionalProperties: false })`. */
export const commonConfig = {
  /** Name in logs and metrics, for example `sk1`. */
  id: Type.String({ minLength: 1, maxLength: 64 }),
  /** Address and port of the HTTP listener; loopback by default. */
  httpHost: Type.String({ default: '127.0.0.1' }),
  httpPort: Type.Integer({ minimum: 0, maximum: 65535 }),
  /** File with the installation secret: 64 hexadecimal digits, mode 0600. */
  secretFile: Type.String(),
  logLevel: Type.Union([Type.Literal('debug'), Type.Literal('info'), Type.Literal('warn'), Type.Literal('error')], { default: 'info' }),
};
export type CommonConfig = {
  id: string;
  httpHost: string;
  httpPort: number;
  secretFile: string;
  logLevel: 'debug' | 'info' | 'warn' | 'error';
};

export function parseConfig<T extends TObject>(schema: T, raw: unknown, origin: string): Static<T> {
  const value = Value.Default(schema as TSchema, structuredClone(raw));
  const first = Value.Errors(schema as TSchema, value)[0];
  if (first !== undefined) throw new LakebaseError('CONFIG', `${origin}: ${first.instancePath || '/'} ${first.message}`);
  return value as Static<T>;
}

/** Reads `--config FILE` from argv; prints the schema's keys for `--help`. */
export function loadConfig<T extends TObject>(serviceName: string, schema: T, argv: readonly string[]): Static<T> {
  const { values } = parseArgs({ args: [...argv], options: { config: { type: 'string' }, help: { type: 'boolean', short: 'h' } } });
  if (values.help === true || values.config === undefined) {
    process.stdout.write(`usage: ${serviceName} --config FILE\n\nThe file is a JSON object with these keys:\n${describe(schema)}`);
    process.exit(values.help === true ? 0 : 2);
  }
  let raw: unknown;
  try {
    raw = JSON.parse(readFileSync(values.config, 'utf8'));
  } catch (cause) {
    throw new LakebaseError('CONFIG', `cannot read the configuration file ${values.config}: ${(cause as Error).message}`, { cause });
  }
  return parseConfig(schema, raw, values.config);
}

function describe(schema: TObject): string {
  return Object.entries(schema.properties)
    .map(([key, s]) => {
      const d = (s as { default?: unknown }).default;
      return `  ${key}${d === undefined ? '' : ` (default ${JSON.stringify(d)})`}\n`;
    })
    .join('');
}

export function readSecret(path: string): string {
  let text: string;
  try {
    text = readFileSync(path, 'utf8').trim();
  } catch (cause) {
    throw new LakebaseError('CONFIG', `cannot read the installation secret ${path}: ${(cause as Error).message}`, { cause });
  }
  if (!/^[0-9a-f]{64}$/.test(text)) throw new LakebaseError('CONFIG', `${path} does not hold 64 hexadecimal digits`);
  return text;
}
