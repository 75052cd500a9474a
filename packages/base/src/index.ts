/** What every package may use: assertions, errors with stable codes, small concurrency helpers. No I/O. */
export * from './assert.ts';
export * from './errors.ts';
export * from './log.ts';
export * from './async.ts';
export * from './failpoint.ts';
