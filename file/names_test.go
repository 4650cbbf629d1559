package file

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

var (
	alice = gearsfs.Caller{UID: 1000, GIDs: []uint32{1000, 50}}
	bob   = gearsfs.Caller{UID: 1001, GIDs: []uint32{1001}}
	root  = gearsfs.Root
)

const rootDir = uint64(gearsfs.RootIno)

// TestErrnos: each operation that POSIX forbids gives its error and changes
// nothing.
func TestErrnos(t *testing.T) {
	r := newRig(t)
	dir := r.mkdir(1, "dir", 0o755)
	r.mkdir(dir, "sub", 0o755)
	r.mkdir(1, "empty", 0o755)
	open := r.mkdir(1, "open", 0o777)
	sticky := r.mkdir(1, "sticky", 0o1777)
	private := r.mkdir(1, "private", 0o700)
	file := r.create(1, "file", 0o644)
	r.create(open, "rootfile", 0o644)
	r.create(sticky, "rootfile", 0o666)
	r.create(private, "hidden", 0o666)
	_, err := r.try(alice, &wire.Make{Dir: uint64(open), Name: "alicefile", Mode: modeFile | 0o644})
	require.NoError(t, err)
	aliceFile, err := r.m.Lookup(open, "alicefile", root)
	require.NoError(t, err)
	_, err = r.try(alice, &wire.Make{Dir: uint64(open), Name: "alicedir", Mode: modeDir | 0o755})
	require.NoError(t, err)
	link := gearsfs.Ino(r.do(&wire.Make{Dir: rootDir, Name: "link", Mode: modeLink, Target: "file"}).Ino)
	fifo := gearsfs.Ino(r.do(&wire.Make{Dir: rootDir, Name: "fifo", Mode: modeFifo | 0o644}).Ino)
	long := strings.Repeat("n", 256)
	u32 := func(n uint32) *uint32 { return &n }
	u64 := func(n uint64) *uint64 { return &n }

	for _, c := range []struct {
		name   string
		caller gearsfs.Caller
		op     any
		want   error
	}{
		{"make existing", root, &wire.Make{Dir: rootDir, Name: "file", Mode: modeFile}, gearsfs.ErrExists},
		{"make over directory", root, &wire.Make{Dir: rootDir, Name: "dir", Mode: modeFile}, gearsfs.ErrExists},
		{"open directory to write", root, &wire.Make{Dir: rootDir, Name: "dir", Mode: modeFile, Open: true}, gearsfs.ErrIsDir},
		{"open link exclusively", root, &wire.Make{Dir: rootDir, Name: "link", Mode: modeFile, Open: true}, gearsfs.ErrExists},
		{"make in missing", root, &wire.Make{Dir: 999, Name: "x", Mode: modeFile}, gearsfs.ErrNotFound},
		{"make in file", root, &wire.Make{Dir: uint64(file), Name: "x", Mode: modeFile}, gearsfs.ErrNotDir},
		{"make long name", root, &wire.Make{Dir: rootDir, Name: long, Mode: modeFile}, gearsfs.ErrNameTooLong},
		{"make slash", root, &wire.Make{Dir: rootDir, Name: "a/b", Mode: modeFile}, gearsfs.ErrInvalid},
		{"make dot", root, &wire.Make{Dir: rootDir, Name: ".", Mode: modeDir}, gearsfs.ErrInvalid},
		{"make unknown type", root, &wire.Make{Dir: rootDir, Name: "x", Mode: 0o030000}, gearsfs.ErrInvalid},
		{"make without write", alice, &wire.Make{Dir: uint64(dir), Name: "x", Mode: modeFile}, gearsfs.ErrAccess},
		{"make without search", alice, &wire.Make{Dir: uint64(private), Name: "hidden", Mode: modeFile}, gearsfs.ErrAccess},
		{"make device", alice, &wire.Make{Dir: uint64(open), Name: "x", Mode: modeChar}, gearsfs.ErrPermission},
		{"make as another", alice, &wire.Make{Dir: uint64(open), Name: "x", Mode: modeFile, Uid: u32(5)}, gearsfs.ErrPermission},
		{"make long link", root, &wire.Make{Dir: rootDir, Name: "x", Mode: modeLink, Target: strings.Repeat("t", 4096)}, gearsfs.ErrNameTooLong},
		{"make empty link", root, &wire.Make{Dir: rootDir, Name: "x", Mode: modeLink}, gearsfs.ErrNotFound},
		{"make without a name", root, &wire.Make{Dir: rootDir, Mode: modeFile}, gearsfs.ErrInvalid},

		{"link missing", root, &wire.Link{Ino: 999, Dir: rootDir, Name: "x"}, gearsfs.ErrNotFound},
		{"link directory", root, &wire.Link{Ino: uint64(dir), Dir: rootDir, Name: "x"}, gearsfs.ErrPermission},
		{"link existing", root, &wire.Link{Ino: uint64(file), Dir: rootDir, Name: "dir"}, gearsfs.ErrExists},
		{"link without write", alice, &wire.Link{Ino: uint64(file), Dir: uint64(dir), Name: "x"}, gearsfs.ErrAccess},

		{"unlink missing", root, r.unlink(1, "x", false), gearsfs.ErrNotFound},
		{"unlink directory", root, r.unlink(1, "dir", false), gearsfs.ErrIsDir},
		{"unlink without write", alice, r.unlink(1, "file", false), gearsfs.ErrAccess},
		{"unlink another's in sticky", alice, r.unlink(sticky, "rootfile", false), gearsfs.ErrPermission},
		{"unlink long name", root, r.unlink(1, long, false), gearsfs.ErrNameTooLong},
		{"unlink what was replaced", root, &wire.Unlink{Dir: rootDir, Name: "file", OpenIno: 2}, gearsfs.ErrStale},
		{"rmdir file", root, r.unlink(1, "file", true), gearsfs.ErrNotDir},
		{"rmdir full", root, r.unlink(1, "dir", true), gearsfs.ErrNotEmpty},
		{"rmdir dot", root, r.unlink(1, ".", true), gearsfs.ErrInvalid},

		{"rename missing", root, r.rename(1, "x", 1, "y", 0), gearsfs.ErrNotFound},
		{"rename into itself", root, r.rename(1, "dir", dir, "x", 0), gearsfs.ErrInvalid},
		{"rename to missing directory", root, r.rename(1, "file", 999, "x", 0), gearsfs.ErrNotFound},
		{"rename directory over file", root, r.rename(1, "dir", 1, "file", 0), gearsfs.ErrNotDir},
		{"rename file over directory", root, r.rename(1, "file", 1, "empty", 0), gearsfs.ErrIsDir},
		{"rename over full directory", root, r.rename(1, "empty", 1, "dir", 0), gearsfs.ErrNotEmpty},
		{"rename over parent", root, r.rename(dir, "sub", 1, "dir", 0), gearsfs.ErrNotEmpty},
		{"rename no-replace", root, r.rename(1, "file", 1, "fifo", 1), gearsfs.ErrExists},
		{"rename no-replace to itself", root, r.rename(1, "file", 1, "file", 1), gearsfs.ErrExists},
		{"exchange with missing", root, r.rename(1, "file", 1, "x", 2), gearsfs.ErrNotFound},
		{"exchange with own child", root, r.rename(1, "dir", dir, "sub", 2), gearsfs.ErrInvalid},
		{"exchange with own parent", root, r.rename(dir, "sub", 1, "dir", 2), gearsfs.ErrInvalid},
		{"rename unknown flag", root, r.rename(1, "file", 1, "x", 4), gearsfs.ErrInvalid},
		{"rename both flags", root, r.rename(1, "file", 1, "x", 3), gearsfs.ErrInvalid},
		{"rename out without write", alice, r.rename(1, "file", open, "x", 0), gearsfs.ErrAccess},
		{"rename in without write", alice, r.rename(open, "alicefile", 1, "x", 0), gearsfs.ErrAccess},
		{"rename from sticky", alice, r.rename(sticky, "rootfile", open, "x", 0), gearsfs.ErrPermission},
		{"rename over in sticky", alice, r.rename(open, "alicefile", sticky, "rootfile", 0), gearsfs.ErrPermission},
		{"rename another's directory away", bob, r.rename(open, "alicedir", sticky, "x", 0), gearsfs.ErrAccess},
		{"rename over what was replaced", root, &wire.Rename{Dir: rootDir, Name: "file", NewDir: rootDir, NewName: "fifo", OpenIno: 2}, gearsfs.ErrStale},

		{"chmod another's", bob, &wire.SetAttr{Ino: uint64(aliceFile.Ino), Mode: u32(0o777)}, gearsfs.ErrPermission},
		{"chown by owner", alice, &wire.SetAttr{Ino: uint64(aliceFile.Ino), Uid: u32(1001)}, gearsfs.ErrPermission},
		{"chgrp to foreign group", alice, &wire.SetAttr{Ino: uint64(aliceFile.Ino), Gid: u32(1001)}, gearsfs.ErrPermission},
		{"truncate directory", root, &wire.SetAttr{Ino: uint64(dir), Size: u64(0)}, gearsfs.ErrIsDir},
		{"truncate fifo", root, &wire.SetAttr{Ino: uint64(fifo), Size: u64(0)}, gearsfs.ErrInvalid},
		{"truncate without write", bob, &wire.SetAttr{Ino: uint64(aliceFile.Ino), Size: u64(0)}, gearsfs.ErrAccess},
		{"truncate too far", root, &wire.SetAttr{Ino: uint64(file), Size: u64(1 << 63)}, gearsfs.ErrTooBig},
		{"set time of another's", bob, &wire.SetAttr{Ino: uint64(aliceFile.Ino), Mtime: u64(5), Atime: u64(5)}, gearsfs.ErrPermission},
		{"touch another's", bob, &wire.SetAttr{Ino: uint64(aliceFile.Ino), Mtime: u64(0), Atime: u64(0)}, gearsfs.ErrAccess},
		{"attributes of missing", root, &wire.SetAttr{Ino: 999}, gearsfs.ErrStale},

		{"xattr replace missing", root, &wire.SetXattr{Ino: uint64(file), Name: "user.x", Flags: xattrReplace}, gearsfs.ErrNoAttr},
		{"xattr remove missing", root, &wire.SetXattr{Ino: uint64(file), Name: "user.x", Remove: true}, gearsfs.ErrNoAttr},
		{"xattr both flags", root, &wire.SetXattr{Ino: uint64(file), Name: "user.x", Flags: 3}, gearsfs.ErrInvalid},
		{"xattr without namespace", root, &wire.SetXattr{Ino: uint64(file), Name: "x"}, gearsfs.ErrUnsupported},
		{"xattr of unknown namespace", root, &wire.SetXattr{Ino: uint64(file), Name: "what.x"}, gearsfs.ErrUnsupported},
		{"xattr long name", root, &wire.SetXattr{Ino: uint64(file), Name: "user." + long}, gearsfs.ErrRange},
		{"xattr long value", root, &wire.SetXattr{Ino: uint64(file), Name: "user.x", Value: make([]byte, 65537)}, gearsfs.ErrTooBig},
		{"xattr user on link", root, &wire.SetXattr{Ino: uint64(link), Name: "user.x"}, gearsfs.ErrPermission},
		{"xattr trusted by user", alice, &wire.SetXattr{Ino: uint64(aliceFile.Ino), Name: "trusted.x"}, gearsfs.ErrPermission},
		{"xattr on another's", bob, &wire.SetXattr{Ino: uint64(aliceFile.Ino), Name: "user.x"}, gearsfs.ErrAccess},

		{"write directory", root, &wire.Write{Ino: uint64(dir), Data: []byte("x")}, gearsfs.ErrIsDir},
		{"write missing", root, &wire.Write{Ino: 999, Data: []byte("x")}, gearsfs.ErrStale},
		{"write without permission", bob, &wire.Write{Ino: uint64(aliceFile.Ino), Data: []byte("x")}, gearsfs.ErrAccess},
		{"write too far", root, &wire.Write{Ino: uint64(file), Pos: 1<<63 - 1, Data: []byte("x")}, gearsfs.ErrTooBig},
		{"allocate nothing", root, &wire.Allocate{Ino: uint64(file)}, gearsfs.ErrInvalid},
		{"allocate collapse", root, &wire.Allocate{Ino: uint64(file), Length: 1, Mode: 8}, gearsfs.ErrUnsupported},
		{"allocate too far", root, &wire.Allocate{Ino: uint64(file), Pos: 1, Length: 1<<63 - 1}, gearsfs.ErrTooBig},

		{"remote by user", alice, &wire.SetRemote{Name: "b", Addrs: "x:1"}, gearsfs.ErrPermission},
		{"remote with colon", root, &wire.SetRemote{Name: "b:", Addrs: "x:1"}, gearsfs.ErrInvalid},
	} {
		before := r.dump()
		_, err := r.try(c.caller, c.op)
		require.ErrorIs(t, err, c.want, c.name)
		require.Equal(t, withoutVolume(before), withoutVolume(r.dump()), "%s: an operation that failed changed something", c.name)
		require.Empty(t, r.seen.changed, c.name)
	}
	r.check()
}

// withoutVolume leaves out the volume's row, whose applied index always moves.
func withoutVolume(dump []byte) string {
	lines := strings.Split(string(dump), "\n")
	kept := lines[:0]
	for _, l := range lines {
		if !strings.HasPrefix(l, `"v"`) {
			kept = append(kept, l)
		}
	}
	return strings.Join(kept, "\n")
}

func TestLinkCountsAndTimes(t *testing.T) {
	r := newRig(t)
	dir := r.mkdir(1, "dir", 0o755)
	require.EqualValues(t, 3, r.attr(1).Nlink)
	require.EqualValues(t, 2, r.attr(dir).Nlink)
	f := r.create(dir, "f", 0o644)
	made := r.now
	require.EqualValues(t, made, r.attr(dir).Mtime.UnixNano())
	require.EqualValues(t, made, r.attr(dir).Ctime.UnixNano())

	r.do(&wire.Link{Ino: uint64(f), Dir: rootDir, Name: "g"})
	a := r.attr(f)
	require.EqualValues(t, 2, a.Nlink)
	require.EqualValues(t, r.now, a.Ctime.UnixNano())
	require.EqualValues(t, made, a.Mtime.UnixNano())
	require.EqualValues(t, r.now, r.attr(1).Mtime.UnixNano())
	require.EqualValues(t, made, r.attr(dir).Mtime.UnixNano())

	r.do(r.unlink(dir, "f", false))
	a = r.attr(f)
	require.EqualValues(t, 1, a.Nlink)
	require.EqualValues(t, r.now, a.Ctime.UnixNano(), "the surviving link's ctime changes")

	other := r.mkdir(1, "other", 0o755)
	r.do(r.rename(1, "dir", other, "moved", 0))
	require.EqualValues(t, 3, r.attr(1).Nlink)
	require.EqualValues(t, 3, r.attr(other).Nlink)
	require.EqualValues(t, r.now, r.attr(dir).Ctime.UnixNano())
	parent, err := r.m.Parent(dir)
	require.NoError(t, err)
	require.Equal(t, other, parent)

	r.do(&wire.Rename{Dir: uint64(other), Name: "moved", NewDir: rootDir, NewName: "g", Flags: renameExchange})
	require.EqualValues(t, 4, r.attr(1).Nlink)
	require.EqualValues(t, 2, r.attr(other).Nlink)
	a, err = r.m.Lookup(other, "moved", root)
	require.NoError(t, err)
	require.Equal(t, f, a.Ino)

	r.do(r.unlink(other, "moved", false))
	_, err = r.m.GetAttr(f)
	require.ErrorIs(t, err, gearsfs.ErrStale)
	r.check()

	before := r.attr(1)
	r.do(r.rename(1, "other", 1, "other", 0))
	require.Equal(t, before, r.attr(1), "renaming to itself does nothing")
}

// TestModes: what becomes of set-id bits and groups.
func TestModes(t *testing.T) {
	r := newRig(t)
	shared := r.mkdir(1, "shared", 0o777)
	mode, gid := uint32(0o2777), uint32(77)
	r.do(&wire.SetAttr{Ino: uint64(shared), Gid: &gid})
	r.do(&wire.SetAttr{Ino: uint64(shared), Mode: &mode})

	made := func(caller gearsfs.Caller, name string, mode uint32) gearsfs.Attr {
		a, err := r.try(caller, &wire.Make{Dir: uint64(shared), Name: name, Mode: mode})
		require.NoError(t, err)
		return r.attr(gearsfs.Ino(a.Ino))
	}
	a := made(alice, "f", modeFile|0o644)
	require.EqualValues(t, 77, a.GID)
	require.EqualValues(t, modeFile|0o644, a.Mode)
	a = made(alice, "d", modeDir|0o755)
	require.EqualValues(t, 77, a.GID)
	require.EqualValues(t, modeDir|0o2755, a.Mode, "a directory inherits set-group-id")
	a = made(alice, "s", modeFile|0o2755)
	require.EqualValues(t, modeFile|0o755, a.Mode, "set-group-id of a foreign group is stripped")

	set := func(caller gearsfs.Caller, ino gearsfs.Ino, op *wire.SetAttr) uint32 {
		op.Ino = uint64(ino)
		_, err := r.try(caller, op)
		require.NoError(t, err)
		return r.attr(ino).Mode & modePerm
	}
	f := made(alice, "x", modeFile|0o644).Ino
	all, own := uint32(0o6755), uint32(50)
	require.EqualValues(t, 0o4755, set(alice, f, &wire.SetAttr{Mode: &all}), "not in the file's group")
	require.EqualValues(t, 0o755, set(alice, f, &wire.SetAttr{Gid: &own}), "chown drops set-user-id")
	require.EqualValues(t, 0o6755, set(alice, f, &wire.SetAttr{Mode: &all}))

	write := func(caller gearsfs.Caller) uint32 {
		_, err := r.try(caller, &wire.Write{Ino: uint64(f), Data: []byte("x")})
		require.NoError(t, err)
		return r.attr(f).Mode & modePerm
	}
	require.EqualValues(t, 0o6755, write(root))
	require.EqualValues(t, 0o755, write(alice))
	set(alice, f, &wire.SetAttr{Mode: &all})
	size := uint64(0)
	require.EqualValues(t, 0o755, set(alice, f, &wire.SetAttr{Size: &size}))
	set(alice, f, &wire.SetAttr{Mode: &all})
	_, err := r.try(alice, &wire.Put{Target: &wire.Target{Ino: uint64(f)}, Key: "data", Records: []*wire.NewRecord{{Data: []byte("x")}}})
	require.NoError(t, err)
	require.EqualValues(t, 0o755, r.attr(f).Mode&modePerm)
}

func TestNamesAreBytes(t *testing.T) {
	r := newRig(t)
	names := []string{"\xff\xfe", strings.Repeat("x", 255), " ", "a\nb", "é", "-", "\x01"}
	for _, name := range names {
		r.create(1, name, 0o644)
	}
	r.do(&wire.Make{Dir: rootDir, Name: "l", Mode: modeLink, Target: "\xff\x80"})
	r.reopen()
	for _, name := range names {
		_, err := r.m.Lookup(1, name, root)
		require.NoError(t, err, "%q", name)
	}
	a, err := r.m.Lookup(1, "l", root)
	require.NoError(t, err)
	target, err := r.m.Readlink(a.Ino)
	require.NoError(t, err)
	require.Equal(t, "\xff\x80", target)
}

func TestResolve(t *testing.T) {
	r := newRig(t)
	dir := r.mkdir(1, "dir", 0o755)
	sub := r.mkdir(dir, "sub", 0o755)
	file := r.create(sub, "file", 0o644)
	link := func(dir gearsfs.Ino, name, target string) {
		r.do(&wire.Make{Dir: uint64(dir), Name: name, Mode: modeLink, Target: target})
	}
	link(1, "abs", "/dir/sub")
	link(dir, "rel", "../dir/./sub/file")
	link(1, "dangling", "dir/none")
	link(1, "loop", "loop")
	link(1, "hop0", "dir")
	for i := range 40 {
		link(1, "hop"+string(rune('A'+i)), map[bool]string{true: "hop0", false: "hop" + string(rune('A'+i-1))}[i == 0])
	}
	closed := r.mkdir(1, "closed", 0o700)
	r.create(closed, "f", 0o644)

	for _, c := range []struct {
		path   string
		follow bool
		want   gearsfs.Ino
		err    error
	}{
		{"/", true, 1, nil},
		{"", true, 1, nil},
		{"dir", true, dir, nil},
		{"/dir//sub/", true, sub, nil},
		{"/dir/sub/..", true, dir, nil},
		{"/../dir/.", true, dir, nil},
		{"/abs/file", true, file, nil},
		{"/abs", true, sub, nil},
		{"/abs/", false, sub, nil},
		{"/dir/rel", true, file, nil},
		{"/dir/sub/file/", true, 0, gearsfs.ErrNotDir},
		{"/dir/sub/file/x", true, 0, gearsfs.ErrNotDir},
		{"/dir/none/x", true, 0, gearsfs.ErrNotFound},
		{"/none", true, 0, gearsfs.ErrNotFound},
		{"/dangling", true, 0, gearsfs.ErrNotFound},
		{"/loop", true, 0, gearsfs.ErrLoop},
		{"/hop" + string(rune('A'+38)), true, dir, nil},
		{"/hop" + string(rune('A'+39)), true, 0, gearsfs.ErrLoop},
		{"/" + strings.Repeat("a/", 2050), true, 0, gearsfs.ErrNameTooLong},
		{"/a\x00", true, 0, gearsfs.ErrInvalid},
	} {
		a, err := r.m.Resolve(c.path, c.follow, root)
		if c.err != nil {
			require.ErrorIs(t, err, c.err, c.path)
			continue
		}
		require.NoError(t, err, c.path)
		require.Equal(t, c.want, a.Ino, c.path)
	}
	_, err := r.m.Resolve("/closed/f", true, alice)
	require.ErrorIs(t, err, gearsfs.ErrAccess)

	at, name, ino, err := r.m.ResolveTarget("/dangling", root)
	require.NoError(t, err)
	require.Equal(t, dir, at, "where the link leads")
	require.Equal(t, "none", name)
	require.Zero(t, ino)
	_, _, ino, err = r.m.ResolveTarget("/abs/file", root)
	require.NoError(t, err)
	require.Equal(t, file, ino)
	_, _, _, err = r.m.ResolveTarget("/none/", root)
	require.ErrorIs(t, err, gearsfs.ErrNotFound)
}

func TestXattrs(t *testing.T) {
	r := newRig(t)
	f := r.create(1, "f", 0o644)
	set := func(name, value string, flags uint32) error {
		_, err := r.try(root, &wire.SetXattr{Ino: uint64(f), Name: name, Value: []byte(value), Flags: flags})
		return err
	}
	require.NoError(t, set("user.b", "1", xattrCreate))
	require.ErrorIs(t, set("user.b", "1", xattrCreate), gearsfs.ErrExists)
	require.NoError(t, set("user.b", "2", xattrReplace))
	require.NoError(t, set("user.a", "", 0))
	require.NoError(t, set("trusted.t", "x", 0))
	require.EqualValues(t, r.now, r.attr(f).Ctime.UnixNano())
	r.reopen()

	names, err := r.m.ListXattr(f, root)
	require.NoError(t, err)
	require.Equal(t, []string{"trusted.t", "user.a", "user.b"}, names)
	names, err = r.m.ListXattr(f, alice)
	require.NoError(t, err)
	require.Equal(t, []string{"user.a", "user.b"}, names)
	v, err := r.m.GetXattr(f, "user.b", alice)
	require.NoError(t, err)
	require.Equal(t, "2", string(v))
	v, err = r.m.GetXattr(f, "user.a", alice)
	require.NoError(t, err)
	require.Empty(t, v)
	_, err = r.m.GetXattr(f, "trusted.t", alice)
	require.ErrorIs(t, err, gearsfs.ErrNoAttr)
	_, err = r.m.GetXattr(f, "user.none", root)
	require.ErrorIs(t, err, gearsfs.ErrNoAttr)

	for i := 0; err == nil || i < 300; i++ {
		if err = set("user."+strings.Repeat("n", 240)+string(rune('a'+i%26))+string(rune('a'+i/26)), "", 0); err != nil && i > 200 {
			break
		}
	}
	require.ErrorIs(t, err, gearsfs.ErrNoSpace)
	names, err = r.m.ListXattr(f, root)
	require.NoError(t, err)
	require.LessOrEqual(t, len(strings.Join(names, "\x00"))+1, xattrsBytesMax)
	r.check()
	r.do(r.unlink(1, "f", false))
	r.check()
}

func TestOrphans(t *testing.T) {
	r := newRig(t)
	a := gearsfs.SessionID{Minted: rigStart, Salt: 1}
	b := gearsfs.SessionID{Minted: rigStart, Salt: 2}
	f := r.create(1, "f", 0o644)
	r.do(&wire.Write{Ino: uint64(f), Data: []byte("hello")})
	r.do(r.unlink(1, "f", false, a, b))
	require.Equal(t, []Touched{{Ino: f, Gone: true}}, r.seen.touched)
	require.True(t, r.m.IsOrphan(f))
	require.Equal(t, "hello", string(r.read(f, 0, 10)))
	require.Zero(t, r.attr(f).Nlink)
	r.reopen()
	r.check()
	require.True(t, r.m.IsOrphan(f))

	release := func(id gearsfs.SessionID, ino gearsfs.Ino) {
		answers := r.entry(by(id, as(root, &wire.Release{Ino: uint64(ino)})))
		require.Zero(t, answers[0].Code)
	}
	release(a, f)
	release(a, f)
	require.True(t, r.m.IsOrphan(f))
	r.do(&wire.EndSession{SessionMinted: uint64(b.Minted), SessionSalt: b.Salt})
	_, err := r.m.GetAttr(f)
	require.ErrorIs(t, err, gearsfs.ErrStale)
	r.check()

	// What has no name may get one again.
	n := r.create(1, "n", 0o644)
	r.do(r.unlink(1, "n", false, a))
	r.do(&wire.Link{Ino: uint64(n), Dir: rootDir, Name: "named"})
	require.False(t, r.m.IsOrphan(n))
	r.check()
	release(a, n)
	require.EqualValues(t, 1, r.attr(n).Nlink)

	// A directory that is removed while it is open takes no names.
	d := r.mkdir(1, "d", 0o755)
	r.do(r.unlink(1, "d", true, a))
	_, err = r.try(root, &wire.Make{Dir: uint64(d), Name: "x", Mode: modeFile})
	require.ErrorIs(t, err, gearsfs.ErrNotFound)
	entries, err := r.m.ReadDir(d, "", 10, root)
	require.NoError(t, err)
	require.Empty(t, entries)
	r.check()
	release(a, d)
	r.check()
}

func TestReadDir(t *testing.T) {
	r := newRig(t)
	d := r.mkdir(1, "d", 0o755)
	names := []string{"a", "a\x01", "a ", "aa", "b", "\xff"}
	for _, n := range names {
		r.create(d, n, 0o644)
	}
	r.create(1, "outside", 0o644)
	r.reopen()
	for range 2 { // without and with caches
		var got []string
		after := ""
		for {
			entries, err := r.m.ReadDir(d, after, 2, root)
			require.NoError(t, err)
			if len(entries) == 0 {
				break
			}
			for _, e := range entries {
				got = append(got, e.Name)
				require.EqualValues(t, modeFile|0o644, e.Attr.Mode)
				after = e.Name
			}
		}
		require.Equal(t, []string{"a", "a\x01", "a ", "aa", "b", "\xff"}, got)
	}
	private := r.mkdir(1, "p", 0o711)
	_, err := r.m.ReadDir(private, "", 1, alice)
	require.ErrorIs(t, err, gearsfs.ErrAccess)
	_, err = r.m.ReadDir(999, "", 1, alice)
	require.ErrorIs(t, err, gearsfs.ErrStale)
}

// TestLinkLimits: counts that can't rise are refused.
func TestLinkLimits(t *testing.T) {
	r := newRig(t)
	f, d := r.create(1, "f", 0o644), r.mkdir(1, "d", 0o755)
	sub := r.mkdir(1, "sub", 0o755)
	for _, ino := range []gearsfs.Ino{f, d} {
		n, err := r.m.node(ino)
		require.NoError(t, err)
		n.row.Nlink = linksMax
	}
	for _, op := range []any{
		&wire.Link{Ino: uint64(f), Dir: rootDir, Name: "g"},
		&wire.Make{Dir: uint64(d), Name: "x", Mode: modeDir},
		r.rename(1, "sub", d, "x", 0),
	} {
		_, err := r.try(root, op)
		require.ErrorIs(t, err, gearsfs.ErrLinks)
	}
	r.do(&wire.Make{Dir: uint64(d), Name: "x", Mode: modeFile})
	parent, err := r.m.Parent(sub)
	require.NoError(t, err)
	require.EqualValues(t, 1, parent)
}

func TestRemotes(t *testing.T) {
	r := newRig(t)
	r.do(&wire.SetRemote{Name: "b", Addrs: "host:1,unix:/x"})
	r.do(&wire.SetRemote{Name: "c", Addrs: "host:2"})
	r.do(&wire.SetRemote{Name: "c"})
	got, err := r.m.Remotes()
	require.NoError(t, err)
	require.Equal(t, map[string]string{"b": "host:1,unix:/x"}, got)
}
