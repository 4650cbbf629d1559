package file

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/wire"
)

// rig is a Machine on a state in memory, with a log index and a clock.
type rig struct {
	t      testing.TB
	fs     vfs.FS
	data   *persist.Data
	m      *Machine
	index  uint64
	now    uint64
	jump   uint64 // of the next entry
	seen   observed
	blocks *fakeBlocks // nil: no extents are read
}

// observed keeps what the last entry was reported to have done.
type observed struct {
	touched []Touched
	changed []Changed
	members int // calls of MembersChanged
	freed   []gearsfs.Extent
	verify  func(index uint64, state View)
}

func (o *observed) Applied(_ uint64, touched []Touched, changed []Changed) {
	o.touched = append(o.touched[:0], touched...)
	o.changed = append(o.changed[:0], changed...)
}

func (o *observed) MembersChanged() { o.members++ }

func (o *observed) Freed(_ uint64, extents []gearsfs.Extent) { o.freed = append(o.freed, extents...) }

func (o *observed) Verify(index uint64, state View) {
	if o.verify != nil {
		o.verify(index, state)
	}
	state.Close()
}

const rigStart = 1_700_000_000_000_000_000

// newRig returns a volume of root's that has nothing in it.
func newRig(t testing.TB) *rig {
	r := &rig{t: t, fs: vfs.NewMem(), now: rigStart}
	r.open(true)
	t.Cleanup(func() { require.NoError(t, r.data.Close()) })
	a := r.entry(&wire.Command{Op: &wire.Command_Init{Init: &wire.Init{Id: make([]byte, 16), Name: "main"}}})
	require.Zero(t, a[0].Code)
	return r
}

func (r *rig) open(create bool) {
	var err error
	r.data, err = persist.Open("/data", persist.Options{FS: r.fs, Create: create, Name: "n", CacheBytes: 8 << 20, MemTableBytes: 8 << 20})
	require.NoError(r.t, err)
	var store Store = r.data.State
	if t, ok := r.t.(*testing.T); ok {
		store = addsChecked{r.data.State, t}
	}
	r.m, err = New(store, &r.seen)
	require.NoError(r.t, err)
}

// addsChecked fails where a row is added that is there.
type addsChecked struct {
	*persist.State
	t *testing.T
}

func (s addsChecked) Add(key, value []byte) {
	_, ok, err := s.Get(key, nil)
	require.NoError(s.t, err)
	require.False(s.t, ok, "row %q is there", key)
	s.State.Add(key, value)
}

// reopen closes the state and opens it again.
func (r *rig) reopen() {
	require.NoError(r.t, r.data.Close())
	r.open(false)
}

// entry applies commands as one entry, a millisecond after the last one.
func (r *rig) entry(commands ...*wire.Command) []*wire.Answer {
	r.t.Helper()
	r.index++
	r.now += 1e6
	answers, err := r.m.Apply(r.index, 1, &wire.Entry{Time: r.now, Jump: r.jump, Commands: commands})
	r.jump = 0
	require.NoError(r.t, err)
	require.Len(r.t, answers, len(commands))
	return answers
}

// as makes a command of an operation that a caller asks for.
func as(caller gearsfs.Caller, op any) *wire.Command {
	c := &wire.Command{Uid: caller.UID, Gids: caller.GIDs, Checked: caller.Checked}
	switch op := op.(type) {
	case *wire.Put:
		c.Op = &wire.Command_Put{Put: op}
	case *wire.Take:
		c.Op = &wire.Command_Take{Take: op}
	case *wire.Settle:
		c.Op = &wire.Command_Settle{Settle: op}
	case *wire.Update:
		c.Op = &wire.Command_Update{Update: op}
	case *wire.Transact:
		c.Op = &wire.Command_Transact{Transact: op}
	case *wire.Move:
		c.Op = &wire.Command_Move{Move: op}
	case *wire.CopyFile:
		c.Op = &wire.Command_CopyFile{CopyFile: op}
	case *wire.Configure:
		c.Op = &wire.Command_Configure{Configure: op}
	case *wire.Inherit:
		c.Op = &wire.Command_Inherit{Inherit: op}
	case *wire.Rewrite:
		c.Op = &wire.Command_Rewrite{Rewrite: op}
	case *wire.Shrink:
		c.Op = &wire.Command_Shrink{Shrink: op}
	case *wire.CopyRange:
		c.Op = &wire.Command_CopyRange{CopyRange: op}
	case *wire.Write:
		c.Op = &wire.Command_Write{Write: op}
	case *wire.Save:
		c.Op = &wire.Command_Save{Save: op}
	case *wire.Make:
		c.Op = &wire.Command_Make{Make: op}
	case *wire.Link:
		c.Op = &wire.Command_Link{Link: op}
	case *wire.Unlink:
		c.Op = &wire.Command_Unlink{Unlink: op}
	case *wire.Rename:
		c.Op = &wire.Command_Rename{Rename: op}
	case *wire.SetAttr:
		c.Op = &wire.Command_SetAttr{SetAttr: op}
	case *wire.Allocate:
		c.Op = &wire.Command_Allocate{Allocate: op}
	case *wire.SetXattr:
		c.Op = &wire.Command_SetXattr{SetXattr: op}
	case *wire.Release:
		c.Op = &wire.Command_Release{Release: op}
	case *wire.EndSession:
		c.Op = &wire.Command_EndSession{EndSession: op}
	case *wire.Confirm:
		c.Op = &wire.Command_Confirm{Confirm: op}
	case *wire.Tick:
		c.Op = &wire.Command_Tick{Tick: op}
	case *wire.SetMember:
		c.Op = &wire.Command_SetMember{SetMember: op}
	case *wire.Verify:
		c.Op = &wire.Command_Verify{Verify: op}
	case *wire.Lock:
		c.Op = &wire.Command_Lock{Lock: op}
	case *wire.SetQuota:
		c.Op = &wire.Command_SetQuota{SetQuota: op}
	case *wire.CountQuota:
		c.Op = &wire.Command_CountQuota{CountQuota: op}
	case *wire.SetRemote:
		c.Op = &wire.Command_SetRemote{SetRemote: op}
	default:
		panic(fmt.Sprintf("no command is %T", op))
	}
	return c
}

// by puts a session on a command.
func by(id gearsfs.SessionID, c *wire.Command) *wire.Command {
	c.SessionMinted, c.SessionSalt = uint64(id.Minted), id.Salt
	return c
}

// try applies one operation and returns its answer and error.
func (r *rig) try(caller gearsfs.Caller, op any) (*wire.Answer, error) {
	r.t.Helper()
	a := r.entry(as(caller, op))[0]
	return a, answerError(a)
}

func answerError(a *wire.Answer) error { return gearsfs.FromCode(gearsfs.Code(a.Code), a.Reason) }

// do is try for root where it must succeed.
func (r *rig) do(op any) *wire.Answer {
	r.t.Helper()
	a, err := r.try(gearsfs.Root, op)
	require.NoError(r.t, err, "%T %v", op, op)
	return a
}

func (r *rig) mkdir(dir gearsfs.Ino, name string, mode uint32) gearsfs.Ino {
	r.t.Helper()
	return gearsfs.Ino(r.do(&wire.Make{Dir: uint64(dir), Name: name, Mode: modeDir | mode}).Ino)
}

func (r *rig) create(dir gearsfs.Ino, name string, mode uint32) gearsfs.Ino {
	r.t.Helper()
	return gearsfs.Ino(r.do(&wire.Make{Dir: uint64(dir), Name: name, Mode: modeFile | mode}).Ino)
}

// unlink makes the operation that removes a name, whatever it leads to now.
func (r *rig) unlink(dir gearsfs.Ino, name string, isDir bool, holders ...gearsfs.SessionID) *wire.Unlink {
	op := &wire.Unlink{Dir: uint64(dir), Name: name, IsDir: isDir, Holders: idList(holders)}
	if a, err := r.m.Lookup(dir, name, gearsfs.Root); err == nil {
		op.OpenIno = uint64(a.Ino)
	}
	return op
}

// rename makes the operation that moves a name, whatever is there now.
func (r *rig) rename(dir gearsfs.Ino, name string, newDir gearsfs.Ino, newName string, flags uint32, holders ...gearsfs.SessionID) *wire.Rename {
	op := &wire.Rename{Dir: uint64(dir), Name: name, NewDir: uint64(newDir), NewName: newName, Flags: flags, Holders: idList(holders)}
	if a, err := r.m.Lookup(newDir, newName, gearsfs.Root); err == nil {
		op.OpenIno = uint64(a.Ino)
	}
	return op
}

func idList(ids []gearsfs.SessionID) []uint64 {
	var list []uint64
	for _, id := range ids {
		list = append(list, uint64(id.Minted), id.Salt)
	}
	return list
}

func (r *rig) attr(ino gearsfs.Ino) gearsfs.Attr {
	r.t.Helper()
	a, err := r.m.GetAttr(ino)
	require.NoError(r.t, err)
	return a
}

func (r *rig) read(ino gearsfs.Ino, pos gearsfs.Pos, n int) []byte {
	r.t.Helper()
	buf := bytes.Repeat([]byte{0xAA}, n) // what was there before must not be read
	c, err := r.m.Read(ino, pos, n, gearsfs.Root, buf)
	require.NoError(r.t, err)
	if r.blocks != nil {
		return r.blocks.content(&c)
	}
	require.Empty(r.t, c.Parts)
	return c.Data
}

// check fails the test where the tables contradict themselves.
func (r *rig) check() {
	r.t.Helper()
	require.NoError(r.t, errors.Join(r.m.Check()...))
}

// dump returns all tables, row by row.
func (r *rig) dump() []byte {
	view := r.data.State.View()
	defer view.Close()
	var out bytes.Buffer
	require.NoError(r.t, scan(view, []byte{0}, []byte{0xff}, func(key, value []byte) error {
		fmt.Fprintf(&out, "%q %x\n", key, value)
		return nil
	}))
	return out.Bytes()
}
