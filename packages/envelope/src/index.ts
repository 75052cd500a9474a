/** The cipher seam: everything persistent is sealed as frames under a data key of its own, which is stored only wrapped. docs/formats/envelope.md */
export * from './cipher.ts';
export * from './binding.ts';
export * from './plain.ts';
export * from './secret.ts';
export * from './dek-reference.ts';
export * from './aes.ts';
