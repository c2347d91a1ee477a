// Package version names the walpost that a program was built from.
package version

import "runtime/debug"

// Number is the release, by semantic versioning; with -dev, the next one. The first section of .github/CHANGELOG.md has the same number.
const Number = "0.1.0-dev"

// commit is set by docker/build.
var commit string

// Build returns the number, the commit where it is known, and the version of Go: 0.1.0+58f838d2c4a1 (go1.26.8).
func Build() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return named(commit, "an unknown version of Go")
	}
	built := commit
	for _, setting := range info.Settings {
		if setting.Key == "vcs.revision" && built == "" {
			built = setting.Value[:min(12, len(setting.Value))]
		}
	}
	return named(built, info.GoVersion)
}

// named returns the number with a commit, which may be empty, and a version of Go.
func named(commit, goVersion string) string {
	if commit != "" {
		commit = "+" + commit
	}
	return Number + commit + " (" + goVersion + ")"
}
