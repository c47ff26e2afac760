"""Real browsers behind one small interface: Chromium by Playwright, Firefox by BiDi, WebKitGTK by WebDriver."""
