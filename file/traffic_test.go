package file

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// traffic makes random entries of all kinds of commands, most of which make
// sense: it learns from the answers.
type traffic struct {
	rng      *rand.Rand
	now      uint64
	dirs     []uint64
	files    []uint64
	names    []string
	sessions []*trafficSession
	salt     uint64
	members  uint64
	lookup   func(dir uint64, name string) (ino uint64) // 0 where there is none
	blocks   *fakeBlocks
	made     map[string]int // commands by kind and outcome
}

type trafficSession struct {
	id        gearsfs.SessionID
	seq       uint64
	confirmed uint64
	sent      []*wire.Command // that are not confirmed
	leased    []*wire.Receipt
}

func newTraffic(rng *rand.Rand, m *Machine) *traffic {
	g := &traffic{rng: rng, now: rigStart, dirs: []uint64{uint64(gearsfs.RootIno)}, made: map[string]int{},
		blocks: newFakeBlocks(nil, rng)}
	g.lookup = func(dir uint64, name string) uint64 {
		a, err := m.Lookup(gearsfs.Ino(dir), name, gearsfs.Root)
		if err != nil {
			return 0
		}
		return uint64(a.Ino)
	}
	for i := range 6 {
		g.names = append(g.names, fmt.Sprintf("n%d", i))
	}
	for range 5 {
		g.sessions = append(g.sessions, g.newSession())
	}
	return g
}

func (g *traffic) newSession() *trafficSession {
	g.salt++
	return &trafficSession{id: gearsfs.SessionID{Minted: int64(g.now), Salt: g.salt}}
}

// next makes the entry at index.
func (g *traffic) next(index uint64) logged {
	if index == 1 {
		return logged{entry: &wire.Entry{Time: g.now, Commands: []*wire.Command{
			{Op: &wire.Command_Init{Init: &wire.Init{Id: make([]byte, 16), Name: "main"}}}}}}
	}
	g.now += g.rng.Uint64N(2e6)
	if g.rng.IntN(30) == 0 {
		g.now += uint64(gearsfs.SessionTTL) / 3
	}
	switch g.rng.IntN(40) {
	case 0:
		return g.conf(index)
	case 1:
		return logged{entry: &wire.Entry{}} // raft's own
	case 2:
		return g.burst()
	}
	l := logged{entry: &wire.Entry{Time: g.now}}
	if g.rng.IntN(30) == 0 {
		l.entry.Jump = g.someTime()
		l.entry.Time += l.entry.Jump
		g.now = l.entry.Time
	}
	for range 1 + g.rng.IntN(8) {
		l.entry.Commands = append(l.entry.Commands, g.command())
	}
	return l
}

func (g *traffic) conf(index uint64) logged {
	l := logged{conf: fmt.Sprintf("conf of %d", index)}
	switch {
	case g.rng.IntN(3) == 0:
	case g.members > 2 && g.rng.IntN(3) == 0:
		l.cause = &wire.MemberChange{Remove: 1 + g.rng.Uint64N(g.members)}
	default:
		g.members++
		l.cause = &wire.MemberChange{Add: member(g.members, pick(g.rng, g.names), "h:1")}
	}
	return l
}

// burst is many clients that each do one thing and leave: they are forgotten
// at one time, more than one entry forgets.
func (g *traffic) burst() logged {
	l := logged{entry: &wire.Entry{Time: g.now}}
	for range 40 {
		s := g.newSession()
		op := any(&wire.Put{Target: g.target(), Key: "a", Records: []*wire.NewRecord{{Data: []byte("x")}}})
		if g.rng.IntN(3) == 0 {
			op = &wire.Take{Target: g.target(), Keys: []string{"a"}, Max: 3}
		}
		cmd := by(s.id, as(gearsfs.Root, op))
		cmd.Seq, cmd.Close = 1, true
		l.entry.Commands = append(l.entry.Commands, cmd)
	}
	return l
}

func (g *traffic) target() *wire.Target {
	if len(g.files) > 0 && g.rng.IntN(4) > 0 {
		return &wire.Target{Ino: pick(g.rng, g.files)}
	}
	return &wire.Target{Dir: pick(g.rng, g.dirs), Name: pick(g.rng, g.names)}
}

func (g *traffic) file() uint64 {
	if len(g.files) == 0 {
		return 2
	}
	if g.rng.IntN(2) == 0 {
		return g.files[len(g.files)-1] // which most likely is there still
	}
	return pick(g.rng, g.files)
}

func (g *traffic) holders() []uint64 {
	var ids []gearsfs.SessionID
	for range g.rng.IntN(3) {
		ids = append(ids, pick(g.rng, g.sessions).id)
	}
	return idList(ids)
}

func (g *traffic) command() *wire.Command {
	i := g.rng.IntN(len(g.sessions))
	s := g.sessions[i]
	switch n := g.rng.IntN(200); {
	case n < 20 && len(s.sent) > 0:
		return proto.CloneOf(pick(g.rng, s.sent)) // a retry
	case n < 22: // the node says that a session is gone
		forget := g.rng.IntN(2) == 0
		g.sessions[i] = g.newSession()
		return as(checked, &wire.EndSession{SessionMinted: uint64(s.id.Minted), SessionSalt: s.id.Salt, Forget: forget})
	case n < 24:
		return as(checked, &wire.SetMember{Member: member(1+g.rng.Uint64N(g.members+2), pick(g.rng, g.names), "h:2")})
	case n < 25:
		return as(checked, &wire.Verify{})
	}
	s.seq++
	cmd := by(s.id, as(gearsfs.Root, g.inTime(g.op(s))))
	cmd.Seq = s.seq
	if g.rng.IntN(4) == 0 && s.confirmed < s.seq {
		s.confirmed += g.rng.Uint64N(s.seq - s.confirmed)
		s.sent = slices.DeleteFunc(s.sent, func(c *wire.Command) bool { return c.Seq < s.confirmed })
	}
	cmd.Confirmed = s.confirmed
	s.sent = append(s.sent, cmd)
	if g.rng.IntN(100) == 0 {
		cmd.Close = true
		if g.rng.IntN(2) == 0 { // else it comes back
			g.sessions[i] = g.newSession()
		}
	}
	return cmd
}

func (g *traffic) op(s *trafficSession) any {
	key := pick(g.rng, modelKeys)
	switch n := g.rng.IntN(145); {
	case n >= 130:
		return g.bytesOp()
	case n >= 110:
		return g.queueOp(s, key)
	case n >= 100:
		return g.hot()
	case n < 25:
		return g.put(key)
	case n < 45:
		t := &wire.Take{Target: g.target(), Keys: []string{key}, Max: 1 + g.rng.Uint32N(200), Lease: g.rng.IntN(4) == 0}
		return t
	case n < 60 && len(s.leased) > 0:
		some := 1 + g.rng.IntN(len(s.leased))
		op := &wire.Settle{Receipts: s.leased[:some], Return: g.rng.IntN(3) == 0}
		s.leased = slices.Clone(s.leased[some:])
		return op
	case n < 65:
		return g.configure(key)
	case n < 70:
		return &wire.Confirm{}
	}
	return g.nameOp(s)
}

// hot is of a queue that is busy: whole ranges of what was taken are cleaned up.
func (g *traffic) hot() any {
	at := &wire.Target{Dir: uint64(gearsfs.RootIno), Name: "hot"}
	if g.rng.IntN(5) < 2 {
		op := &wire.Put{Target: at, Key: "jobs", Mode: 0o600}
		for range 400 {
			op.Records = append(op.Records, &wire.NewRecord{Data: make([]byte, g.rng.IntN(2))})
		}
		return op
	}
	return &wire.Take{Target: at, Keys: []string{"jobs"}, Max: 200 + g.rng.Uint32N(200), Lease: g.rng.IntN(8) == 0}
}

func (g *traffic) put(key string) any {
	op := &wire.Put{Target: g.target(), Key: key, Mode: 0o644, Append: key == "data" && g.rng.IntN(2) == 0}
	for range 1 + g.rng.IntN(5) {
		op.Records = append(op.Records, &wire.NewRecord{Data: fmt.Appendf(nil, "%d", g.rng.Uint32N(1000))[:g.rng.IntN(2)]})
	}
	if g.rng.IntN(20) == 0 {
		op.Records = append(op.Records, &wire.NewRecord{Data: make([]byte, 5000), Type: "large"})
	}
	if g.rng.IntN(4) == 0 {
		op.Records = append(op.Records, &wire.NewRecord{Extents: g.stored()})
	}
	return op
}

// stored makes extents, mostly of few pages.
func (g *traffic) stored() []*wire.Extent {
	return g.blocks.append(make([]byte, 1+g.rng.IntN(pick(g.rng, []int{100, 9000, 9000, 200 * k}))))
}

// bytesOp is one of those that change a file's bytes and concern extents.
func (g *traffic) bytesOp() any {
	pos := g.rng.Uint64N(300 * k)
	switch g.rng.IntN(3) {
	case 0:
		return &wire.CopyRange{FromIno: g.file(), FromPos: g.rng.Uint64N(200 * k), Ino: g.file(), Pos: pos, Length: 1 + g.rng.Uint64N(200*k)}
	case 1:
		return &wire.Allocate{Ino: g.file(), Pos: pos, Length: 1 + g.rng.Uint64N(100*k), Mode: allocPunchHole | allocKeepSize}
	}
	return &wire.Write{Ino: g.file(), Pos: pos, Extents: g.stored()}
}

func (g *traffic) configure(key string) any {
	op := &wire.Configure{Target: g.target(), Key: key}
	switch g.rng.IntN(6) {
	case 0:
		op.Clear = true
	case 1:
		op.Drop = key != "data"
	case 2:
		seal := g.rng.IntN(3) == 0
		op.Seal = &seal
	case 3:
		op.SetLimits, op.LimitRecords = true, 500
	default:
		op.SetLimits = true
	}
	return op
}

// nameOp is one of the operations of a file system.
func (g *traffic) nameOp(s *trafficSession) any {
	dir, name := pick(g.rng, g.dirs), pick(g.rng, g.names)
	size, zero := uint64(g.rng.IntN(9000)), uint64(0)
	switch g.rng.IntN(24) {
	case 22:
		perm := uint16(g.rng.Uint32N(8))
		return &wire.SetXattr{Ino: g.file(), Name: aclAccess, Value: aclOf(6, perm, 4, aclEntry{aclUser, perm, 7}, mask(perm)).bytes(), Remove: g.rng.IntN(3) == 0}
	case 23:
		return &wire.SetXattr{Ino: dir, Name: aclDefault, Value: aclOf(7, 5, uint16(g.rng.Uint32N(8))).bytes(), Remove: g.rng.IntN(3) == 0}
	case 20, 21:
		start := g.rng.Uint64N(20)
		return &wire.Lock{Ino: g.file(), Owner: g.rng.Uint64N(3), Flock: g.rng.IntN(3) == 0, Kind: g.rng.Uint32N(3), Start: start, End: start + g.rng.Uint64N(10)}
	case 18:
		return &wire.CountQuota{}
	case 19:
		bytes, inodes := 1000*g.rng.Uint64N(9), g.rng.Uint64N(40)
		return &wire.SetQuota{Dir: dir, Bytes: &bytes, Inodes: &inodes, Remove: g.rng.IntN(3) == 0}
	case 0, 1, 2:
		return &wire.Make{Dir: dir, Name: name, Mode: pick(g.rng, []uint32{modeFile, modeFile, modeDir}) | 0o644, Open: g.rng.IntN(4) == 0}
	case 3:
		return &wire.Link{Ino: g.file(), Dir: dir, Name: fmt.Sprintf("link%d", g.rng.IntN(30))}
	case 4, 5:
		return &wire.Unlink{Dir: dir, Name: name, IsDir: g.rng.IntN(3) == 0, OpenIno: g.lookup(dir, name), Holders: g.holders()}
	case 6, 15, 16:
		newDir, newName := pick(g.rng, g.dirs), pick(g.rng, g.names)
		if g.rng.IntN(2) == 0 {
			newName = fmt.Sprintf("moved%d", g.rng.IntN(30))
		}
		return &wire.Rename{Dir: dir, Name: name, NewDir: newDir, NewName: newName,
			Flags: g.rng.Uint32N(3), OpenIno: g.lookup(newDir, newName), Holders: g.holders()}
	case 7:
		mode := g.rng.Uint32N(0o1000) | 0o600
		return &wire.SetAttr{Ino: g.file(), Mode: &mode, Atime: &zero}
	case 8, 9:
		return &wire.SetAttr{Ino: g.file(), Size: &size}
	case 10, 11:
		write := &wire.Write{Ino: g.file(), Pos: size, Data: make([]byte, g.rng.IntN(6000))}
		if g.rng.IntN(3) == 0 {
			mode := g.rng.Uint32N(0o1000) | 0o600
			return &wire.Save{Write: write, Set: &wire.SetAttr{Ino: write.Ino, Mode: &mode, Mtime: &zero}}
		}
		return write
	case 12:
		return &wire.Allocate{Ino: g.file(), Pos: size, Length: 5000, Mode: 3} // a hole
	case 13:
		return &wire.SetXattr{Ino: g.file(), Name: "user." + name, Value: []byte(name), Remove: g.rng.IntN(3) == 0}
	case 14:
		return &wire.Release{Ino: g.file()}
	default:
		return &wire.SetRemote{Name: name, Addrs: pick(g.rng, []string{"", "h:1", "h:2"})}
	}
}

// learn looks at what came of an entry.
func (g *traffic) learn(l *logged) {
	for i, a := range l.want {
		cmd := l.entry.Commands[i]
		g.made[fmt.Sprintf("%T %d", cmd.Op, a.Code)]++
		if a.Code != 0 {
			continue
		}
		if op, ok := cmd.Op.(*wire.Command_Make); ok && op.Make.Mode&modeType == modeDir {
			g.dirs = keep(append(g.dirs, a.Ino))
		} else if a.Ino > 1 && !slices.Contains(g.files, a.Ino) && !slices.Contains(g.dirs, a.Ino) {
			g.files = keep(append(g.files, a.Ino))
		}
		for _, s := range g.sessions {
			if s.id.Salt != cmd.SessionSalt {
				continue
			}
			for _, r := range receipts(&wire.Answer{Records: allRecords(a)}) {
				if r.Fence != 0 {
					s.leased = append(s.leased, r)
				}
			}
		}
	}
}

// keep forgets the older ones of many, but for the first.
func keep(inos []uint64) []uint64 {
	if len(inos) > 5 {
		return slices.Delete(inos, 1, 2)
	}
	return inos
}

func (g *traffic) counts() string {
	text := ""
	for _, kind := range slices.Sorted(maps.Keys(g.made)) {
		text += fmt.Sprintf("\n%6d %s", g.made[kind], kind)
	}
	return text
}

// missing names a kind of command that never succeeded, where there is one.
func (g *traffic) missing() string {
	for _, op := range []any{&wire.Put{}, &wire.Take{}, &wire.Settle{}, &wire.Configure{}, &wire.Write{}, &wire.Save{}, &wire.Make{}, &wire.Link{},
		&wire.Unlink{}, &wire.Rename{}, &wire.SetAttr{}, &wire.Allocate{}, &wire.SetXattr{}, &wire.Release{}, &wire.EndSession{},
		&wire.SetRemote{}, &wire.Update{}, &wire.Transact{}, &wire.Move{}, &wire.CopyFile{}, &wire.SetQuota{}, &wire.CountQuota{}, &wire.Lock{},
		&wire.Confirm{}, &wire.Tick{}, &wire.SetMember{}, &wire.Verify{}} {
		if g.made[fmt.Sprintf("%T 0", as(gearsfs.Root, op).Op)] == 0 {
			return fmt.Sprintf("%T", op)
		}
	}
	return ""
}
