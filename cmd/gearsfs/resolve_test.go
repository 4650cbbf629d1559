package main

import (
	"net"
	"path/filepath"
	"testing"

	"github.com/gearsfs/gearsfs/mount"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// bareApp is an app without nodes, in an environment of its own, with one
// mount under /m.
func bareApp(env map[string]string) *app {
	a := newApp()
	a.getenv = func(name string) string { return env[name] }
	a.locate = func(path string) (mount.Location, error) {
		rest, err := filepath.Rel("/m", path)
		if err != nil || !filepath.IsLocal(rest) {
			return mount.Location{}, mount.ErrNotMounted
		}
		return mount.Location{Node: "unix:/m.sock", Volume: "main", Path: "/" + rest}, nil
	}
	return a
}

func TestPlace(t *testing.T) {
	a := bareApp(map[string]string{"GEARSFS_NODE": "env:1"})
	for _, c := range []struct {
		arg, node string
		want      place
	}{
		{"/m/jobs", "", place{addrs: "unix:/m.sock", path: "/jobs"}},
		{":/jobs", "", place{addrs: "env:1", path: "/jobs"}},
		{"b:/jobs", "", place{addrs: "env:1", remote: "b", path: "/jobs"}},
		{":/jobs", "host:2", place{addrs: "host:2", path: "/jobs"}},
		{":jobs", "host:2", place{addrs: "host:2", path: "/jobs"}},
		{"jobs", "host:2", place{addrs: "host:2", path: "/jobs"}},
		{"/m/jobs", "host:2", place{addrs: "host:2", path: "/m/jobs"}},
		{"b:/jobs", "host:2", place{addrs: "host:2", remote: "b", path: "/jobs"}},
		{"a b:/jobs", "host:2", place{addrs: "host:2", path: "/a b:/jobs"}},
	} {
		got, err := a.place(c.arg, c.node, a.locate)
		require.NoError(t, err, c.arg)
		assert.Equal(t, c.want, got, "%s --node %s", c.arg, c.node)
	}
	for _, arg := range []string{"", "/elsewhere", ":jobs", "b:jobs", "x\x00y"} {
		_, err := a.place(arg, "", a.locate)
		assert.Equal(t, exitUsage, exitStatus(err), "%q", arg)
	}
}

func TestPlainPathsDoNotDependOnTheEnvironment(t *testing.T) {
	for _, env := range []map[string]string{nil, {"GEARSFS_NODE": "env:1"}} {
		a := bareApp(env)
		got, err := a.place("/m/a/b", "", a.locate)
		require.NoError(t, err)
		assert.Equal(t, place{addrs: "unix:/m.sock", path: "/a/b"}, got)
	}
}

func TestAddrs(t *testing.T) {
	dir := t.TempDir()
	env := map[string]string{"XDG_RUNTIME_DIR": dir}
	a := bareApp(env)
	assert.Equal(t, "host:1", a.addrs("host:1"))
	l, err := net.Listen("unix", filepath.Join(dir, "gearsfs.sock"))
	require.NoError(t, err)
	defer l.Close()
	assert.Equal(t, "unix:"+dir+"/gearsfs.sock", a.addrs(""))
	env["GEARSFS_NODE"] = "a:1,b:2"
	assert.Equal(t, "a:1,b:2", a.addrs(""))
}

func TestCheckRemoteName(t *testing.T) {
	for _, good := range []string{"b", "node-2", "a.b_c", "7"} {
		assert.NoError(t, checkRemoteName(good), good)
	}
	for _, bad := range []string{"", ".", "..", "a/b", "a:b", "a b", "é", "a,b"} {
		assert.Error(t, checkRemoteName(bad), bad)
	}
}

func TestSplit(t *testing.T) {
	for path, want := range map[string][2]string{"/a": {"/", "a"}, "/a/b": {"/a/", "b"}, "/a/b/": {"/a/", "b"}} {
		dir, name, err := split(path)
		require.NoError(t, err)
		assert.Equal(t, want, [2]string{dir, name})
	}
	for _, path := range []string{"/", "//", "/a/..", "/."} {
		_, _, err := split(path)
		assert.Error(t, err, path)
	}
}
