package node

import (
	"cmp"
	"runtime/debug"
)

// version is set by the linker: -X .../cmd/internal/node.version=v1.2.3.
var version string

// Version returns the version of this program: what it was linked with, else
// the module's, else the commit that it was built from.
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return cmp.Or(version, "unknown")
	}
	module := info.Main.Version
	if module == "(devel)" {
		module = ""
	}
	revision := ""
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			revision = s.Value[:min(12, len(s.Value))]
		}
	}
	return cmp.Or(version, module, revision, "devel")
}
