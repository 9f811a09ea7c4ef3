"""A headless browser: the system's Chromium, drawn without a GPU; nothing is downloaded."""

import shutil

NAMES = (("chromium", "chromedriver"), ("chromium-browser", "chromedriver"),
         ("google-chrome", "chromedriver"))


def find_browser():
    """The paths of a browser and of its driver, or None."""
    for names in NAMES:
        paths = tuple(map(shutil.which, names))
        if all(paths):
            return paths
    return None


def open_browser(width, height):
    """A selenium driver whose page is `width` x `height` pixels; requests are in its log."""
    from selenium import webdriver

    browser, driver = find_browser()
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--mute-audio",
                 "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
                 "--ignore-gpu-blocklist", "--hide-scrollbars", "--force-device-scale-factor=1",
                 f"--window-size={width},{height}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    page = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
        "width": width, "height": height, "deviceScaleFactor": 1, "mobile": False})
    return page
