'use strict';

exports.main = async (context, input) => {
  // Positional text arrives under a name of its own.
  const name = input?.name ?? input?.__function_input ?? 'World';
  console.log(`greeting ${name}`);
  return `Hello, ${name}`;
};
