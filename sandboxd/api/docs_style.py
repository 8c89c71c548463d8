"""The style sheet of the page for people. It follows the reader's light or dark preference."""

STYLE = """
:root { --page: #ffffff; --side: #f6f7f9; --text: #1c2128; --quiet: #59636e; --line: #d9dee4; --link: #0757b8;
  --code: #eff2f5; --get: #0b6b4f; --post: #0757b8; --delete: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --page: #14181d; --side: #1a1f26; --text: #e2e7ed; --quiet: #9aa5b1;
  --line: #313944; --link: #7ab7ff; --code: #232a33; --get: #58c9a3; --post: #7ab7ff; --delete: #ff8a80; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 1rem; }
body { margin: 0; background: var(--page); color: var(--text); display: grid;
  grid-template-columns: 15rem minmax(0, 1fr); font: 16px/1.55 system-ui, sans-serif; }
nav { position: sticky; top: 0; height: 100vh; overflow-y: auto; padding: 1.25rem; background: var(--side);
  border-right: 1px solid var(--line); font-size: .9rem; }
nav .brand { font-weight: 700; font-size: 1.15rem; margin-top: 0; }
nav h3 { margin: 1.1rem 0 .25rem; font-size: .75rem; text-transform: uppercase; letter-spacing: .06em;
  color: var(--quiet); }
nav ul { list-style: none; margin: 0; padding: 0; }
nav li { margin: .15rem 0; }
nav p { margin: .9rem 0 0; }
main { padding: 1.5rem 2.5rem 6rem; max-width: 62rem; width: 100%; }
h1 { margin: 0 0 .5rem; font-size: 1.9rem; }
h2 { margin: 2.75rem 0 1rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
article { margin: 0 0 1.25rem; padding: 1rem 1.25rem; border: 1px solid var(--line); border-radius: 8px; }
article h3 { margin: 0 0 .4rem; font-size: 1.05rem; overflow-wrap: anywhere; }
article h4 { margin: 1rem 0 .35rem; font-size: .8rem; text-transform: uppercase; letter-spacing: .05em;
  color: var(--quiet); }
p { margin: .4rem 0; }
.summary { font-weight: 600; }
.method { display: inline-block; min-width: 4.2rem; font-weight: 700; font-size: .85rem; }
.get { color: var(--get); } .post { color: var(--post); } .delete { color: var(--delete); }
.scope { margin-left: .5rem; padding: .05rem .5rem; border: 1px solid var(--line); border-radius: 999px;
  font-size: .75rem; font-weight: 400; color: var(--quiet); white-space: nowrap; }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: .9rem; }
td { padding: .35rem .75rem .35rem 0; border-top: 1px solid var(--line); vertical-align: top; }
td:first-child { width: 26%; min-width: 9rem; } td:nth-child(2) { width: 26%; }
code { padding: .1em .3em; border-radius: 4px; background: var(--code);
  font: .875em/1.4 ui-monospace, "DejaVu Sans Mono", monospace; }
pre { padding: 1rem; border-radius: 8px; background: var(--code); overflow-x: auto; }
pre code { padding: 0; background: none; }
small { color: var(--quiet); }
b { font-size: .75rem; font-weight: 600; color: var(--delete); }
a { color: var(--link); text-decoration: none; }
a:hover, a:focus-visible { text-decoration: underline; }
@media (max-width: 60rem) { body { display: block; } main { padding: 1rem; }
  nav { position: static; height: auto; border-right: 0; border-bottom: 1px solid var(--line); } }
"""
