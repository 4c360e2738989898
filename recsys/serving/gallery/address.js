// Address of a view: the parameters behind #.

export const addressOf = (parameters) => `#${new URLSearchParams(parameters)}`;
export const asked = () => Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
