// Address of a view: the parameters behind #.

export const addressOf = (parameters) => `#${new URLSearchParams(parameters)}`;
export const asked = () => Object.fromEntries(new URLSearchParams(location.hash.slice(1)));

// The address of a view of the gallery, from any page.
export const galleryAddress = (parameters) =>
  `${document.querySelector(".brand").getAttribute("href")}${addressOf(parameters)}`;
