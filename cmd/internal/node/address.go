package node

import (
	"path/filepath"
)

const (
	socketName   = "gearsfs.sock"
	socketSystem = "/run/" + socketName
)

// Sockets are the paths of the unix sockets at which a node is looked for when
// nobody says where it is, in order; the first is where a daemon listens. env
// is os.Getenv.
func Sockets(env func(string) string) []string {
	if dir := env("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		return []string{filepath.Join(dir, socketName), socketSystem}
	}
	return []string{socketSystem}
}
