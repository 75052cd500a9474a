/** The cipher seam. Everything persistent is written as frames through a {@link FrameCipher}; a later issue adds AES-256-GCM under a DEK
 *  wrapped by the project's KEK. Formats already carry the wrapped key reference, nonce and tag. */
export * from './cipher.ts';
