/** Made in issue 4. */
export {};
