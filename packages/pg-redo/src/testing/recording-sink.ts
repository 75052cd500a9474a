/** An EffectSink that notes every call as [name, ...arguments], with copies of what is valid during the call only. */
import type { EffectSink } from '../effects.ts';

export type Call = readonly [string, ...unknown[]];

export function recordingSink(options: { commitTimestamps?: boolean } = {}): { sink: EffectSink; calls: Call[] } {
  const calls: Call[] = [];
  const keep = (value: unknown): unknown =>
    Buffer.isBuffer(value) ? value.toString('hex') : typeof value === 'object' && value !== null ? { ...value } : value;
  const sink = new Proxy(options as object, {
    get: (target, name) => {
      if (name === 'commitTimestamps') return Reflect.get(target, name) as unknown;
      return (...args: unknown[]) => void calls.push([String(name), ...args.map(keep)]);
    },
  }) as EffectSink;
  return { sink, calls };
}
