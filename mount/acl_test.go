package mount_test

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// aclEntry is an entry of an access control list as the kernel reads it.
type aclEntry struct {
	tag, perm uint16
	id        uint32
}

const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"
	nobody     = 65534 // whom asNobody runs as
)

// aclFor is a list that lets one user do something beside what a mode says.
func aclFor(user uint32, perm uint16, owner, group, other uint16) []byte {
	value := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range []aclEntry{{1, owner, ^uint32(0)}, {2, perm, user}, {4, group, ^uint32(0)}, {0x10, 7, ^uint32(0)}, {0x20, other, ^uint32(0)}} {
		value = binary.LittleEndian.AppendUint16(value, e.tag)
		value = binary.LittleEndian.AppendUint16(value, e.perm)
		value = binary.LittleEndian.AppendUint32(value, e.id)
	}
	return value
}

// asNobodyMay says whether somebody unprivileged may use a file so.
func asNobodyMay(t *testing.T, path string, mode uint32) (err error) {
	t.Helper()
	asNobody(t, func() { err = unix.Faccessat(unix.AT_FDCWD, path, mode, unix.AT_EACCESS) })
	return err
}

// forAll lets everybody come to a directory of the test's.
func forAll(t *testing.T, dir string) {
	t.Helper()
	for ; dir != os.TempDir(); dir = filepath.Dir(dir) {
		require.NoError(t, os.Chmod(dir, 0o755))
	}
}

func TestACLOnTheMount(t *testing.T) {
	_, here, there := twoMounts(t)
	forAll(t, filepath.Dir(here))
	forAll(t, filepath.Dir(there))
	require.NoError(t, os.Chmod(here, 0o600))
	require.ErrorIs(t, asNobodyMay(t, here, unix.R_OK), unix.EACCES)
	require.ErrorIs(t, asNobodyMay(t, there, unix.R_OK), unix.EACCES)
	require.NoError(t, unix.Setxattr(here, aclAccess, aclFor(nobody, 6, 6, 0, 0), 0))
	require.NoError(t, asNobodyMay(t, here, unix.R_OK|unix.W_OK))
	require.ErrorIs(t, asNobodyMay(t, here, unix.X_OK), unix.EACCES)
	eventually(t, "the other mount sees it", func() bool { return asNobodyMay(t, there, unix.R_OK|unix.W_OK) == nil })
	buf := make([]byte, 100)
	n, err := unix.Getxattr(there, aclAccess, buf)
	require.NoError(t, err)
	require.Equal(t, aclFor(nobody, 6, 6, 0, 0), buf[:n])

	require.NoError(t, os.Chmod(here, 0o640)) // the group's bits are the mask
	require.ErrorIs(t, asNobodyMay(t, here, unix.W_OK), unix.EACCES)
	require.NoError(t, asNobodyMay(t, here, unix.R_OK))
	require.NoError(t, unix.Removexattr(here, aclAccess))
	require.NoError(t, os.Chmod(here, 0o600)) // the bits stayed, and nobody is in the group here
	require.ErrorIs(t, asNobodyMay(t, here, unix.R_OK), unix.EACCES)
	_, err = unix.Getxattr(here, aclAccess, buf)
	require.ErrorIs(t, err, unix.ENODATA)
}

func TestDefaultACL(t *testing.T) {
	f := newFixture(t)
	forAll(t, f.dir)
	f.mustShell(t, "umask 077 && mkdir -m 755 d && touch plain && mkdir plaindir")
	for name, mode := range map[string]os.FileMode{"plain": 0o600, "plaindir": os.ModeDir | 0o700} {
		info, err := os.Stat(f.path(name))
		require.NoError(t, err)
		require.Equal(t, mode, info.Mode(), name)
	}
	require.NoError(t, unix.Setxattr(f.path("d"), aclDefault, aclFor(nobody, 7, 7, 5, 0), 0))
	f.mustShell(t, "umask 077 && cd d && echo hello > f && mkdir sub && echo hello > sub/f && mkfifo p && ln -s f l")
	for name, mode := range map[string]os.FileMode{"f": 0o660, "sub": os.ModeDir | 0o770, "sub/f": 0o660, "p": os.ModeNamedPipe | 0o660} {
		info, err := os.Stat(f.path("d", name))
		require.NoError(t, err)
		require.Equal(t, mode, info.Mode(), name)
		require.NoError(t, asNobodyMay(t, f.path("d", name), unix.R_OK|unix.W_OK), name)
	}
	asNobody(t, func() {
		data, err := os.ReadFile(f.path("d", "sub", "f"))
		require.NoError(t, err)
		require.Equal(t, "hello\n", string(data))
		require.NoError(t, os.WriteFile(f.path("d", "sub", "mine"), nil, 0o600))
	})
}

// Who sets a list and is not in the file's group takes set-group-id away, as by chmod.
func testSetgidACL(t *testing.T, p place) {
	forAll(t, p.here)
	const foreign = 12345 // a group that nobody is in here
	p.write(t, "file", "")
	require.NoError(t, os.Mkdir(p.path("dir"), 0o755))
	for _, name := range []string{"file", "dir"} {
		for _, c := range []struct {
			who  string
			gid  int
			do   func(*testing.T, func())
			kept bool
		}{
			{"a stranger", foreign, asNobody, false},
			{"a member", os.Getgid(), asNobody, true},
			{"root", foreign, func(_ *testing.T, fn func()) { fn() }, true},
		} {
			require.NoError(t, os.Chown(p.path(name), nobody, c.gid))
			require.NoError(t, unix.Chmod(p.path(name), unix.S_ISGID|0o770))
			c.do(t, func() {
				require.NoError(t, unix.Setxattr(p.path(name), aclAccess, aclFor(nobody, 6, 7, 5, 0), 0))
			})
			require.Equal(t, c.kept, lstat(t, p.path(name)).Mode&unix.S_ISGID != 0, "%s, %s", name, c.who)
			require.EqualValues(t, 0o770, lstat(t, p.path(name)).Mode&0o777)
		}
	}
}
