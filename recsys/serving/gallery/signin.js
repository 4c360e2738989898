// Sign-in: the token once; the server answers with a cookie that no script reads.
const $ = (id) => document.getElementById(id);

function say(text) {
  $("status").textContent = text;
  $("status").className = "error";
}

$("signin").addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = event.target.querySelector("button");
  button.disabled = true;
  try {
    const answer = await fetch("/v1/session", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ token: $("token").value }),
    });
    if (answer.ok) {
      location.replace("/");
      return;
    }
    say((await answer.json()).detail);
    $("token").select();
  } catch {
    say("The server does not answer. Try again in a moment.");
  } finally {
    button.disabled = false;
  }
});

// A link from another site comes without the cookie of a session that is there.
fetch("/v1/gallery").then((answer) => answer.ok && location.replace("/"), () => {});
