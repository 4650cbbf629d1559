package file

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sort"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// model is a volume as plain maps and slices.
type model struct {
	inodes map[gearsfs.Ino]*modelInode
}

type modelInode struct {
	mode, nlink  uint32
	uid, gid     uint32
	mtime, ctime uint64
	target       string
	parent       gearsfs.Ino
	children     map[string]gearsfs.Ino
	xattrs       map[string]string
	holders      []gearsfs.SessionID
	content
}

// content is a file's bytes by position. Those in front of cursor can be
// written only where a record that was leased holds them.
type content struct {
	val    []byte
	held   []bool // in front of cursor: a leased or returned record is there
	head   int
	cursor int
	leases []*wire.TakenRecord
}

func newModel(now uint64) *model {
	return &model{inodes: map[gearsfs.Ino]*modelInode{
		1: {mode: modeDir | 0o755, nlink: 2, mtime: now, ctime: now, parent: 1, children: map[string]gearsfs.Ino{}},
	}}
}

// inos returns the inodes that a test says yes to, in order.
func (m *model) inos(yes func(*modelInode) bool) []gearsfs.Ino {
	var list []gearsfs.Ino
	for ino, n := range m.inodes {
		if yes(n) {
			list = append(list, ino)
		}
	}
	slices.Sort(list)
	return list
}

func (m *model) inside(dir, top gearsfs.Ino) bool {
	for dir != 1 && dir != top {
		dir = m.inodes[dir].parent
	}
	return dir == top
}

func (m *model) attach(dir gearsfs.Ino, name string, ino gearsfs.Ino, now uint64) {
	d, n := m.inodes[dir], m.inodes[ino]
	d.children[name] = ino
	d.mtime, d.ctime, n.ctime = now, now, now
	if isDir(n.mode) {
		d.nlink++
		n.parent = dir
	} else {
		n.nlink++
	}
}

func (m *model) detach(dir gearsfs.Ino, name string, now uint64) gearsfs.Ino {
	d := m.inodes[dir]
	ino := d.children[name]
	delete(d.children, name)
	d.mtime, d.ctime = now, now
	if isDir(m.inodes[ino].mode) {
		d.nlink--
	}
	return ino
}

func (m *model) unlinked(ino gearsfs.Ino, holders []gearsfs.SessionID, now uint64) {
	n := m.inodes[ino]
	n.ctime = now
	n.nlink--
	if isDir(n.mode) {
		n.nlink = 0
	}
	if n.nlink > 0 {
		return
	}
	if n.holders = holders; len(holders) == 0 {
		delete(m.inodes, ino)
	}
}

func (c *content) resize(n int) {
	for len(c.val) < n {
		c.val, c.held = append(c.val, 0), append(c.held, false)
	}
	clear(c.val[n:])
	clear(c.held[n:])
	c.val, c.held = c.val[:n], c.held[:n]
	c.cursor = min(c.cursor, n)
	c.leases = slices.DeleteFunc(c.leases, func(t *wire.TakenRecord) bool {
		t.Data = t.Data[:max(0, min(len(t.Data), n-int(t.Pos)))]
		return int(t.Pos) >= n
	})
}

// writable says whether a write may touch [pos, end).
func (c *content) writable(pos, end int) bool {
	if pos < c.head {
		return false
	}
	for ; pos < min(end, c.cursor); pos++ {
		if !c.held[pos] {
			return false
		}
	}
	return true
}

// player makes random operations, and applies them to the Machine, its twin
// that is reopened at other times, has tiny caches and gets several operations
// in one entry, and the model.
type player struct {
	*rig
	twin     *rig
	model    *model
	rng      *rand.Rand
	sessions []gearsfs.SessionID
	waiting  []*wire.Command // that the twin was not given yet
	answers  []*wire.Answer  // of waiting
	log      []string
	rewrites int
	shrinks  int

	more    []func() op                      // kinds of operations beside the usual ones
	refused func(err error, a any) (ok bool) // whether an operation may be refused beside what the model says
}

// op is an operation, the error that it must give, and what it does to the
// model where it gives none.
type op struct {
	by      gearsfs.SessionID
	op      any
	want    error
	mayFail error // it gives this one, or does it
	done    func(a *wire.Answer)
}

func pick[T any](rng *rand.Rand, list []T) T { return list[rng.IntN(len(list))] }

func (p *player) dir() gearsfs.Ino {
	return pick(p.rng, p.model.inos(func(n *modelInode) bool { return isDir(n.mode) && n.nlink > 0 }))
}

func (p *player) file() (gearsfs.Ino, *modelInode) {
	inos := p.model.inos(func(n *modelInode) bool { return isFile(n.mode) })
	if len(inos) == 0 {
		return 0, nil
	}
	ino := pick(p.rng, inos)
	return ino, p.model.inodes[ino]
}

func (p *player) name(dir gearsfs.Ino) string {
	children := p.model.inodes[dir].children
	if len(children) > 0 && p.rng.IntN(3) > 0 {
		names := make([]string, 0, len(children))
		for name := range children {
			names = append(names, name)
		}
		sort.Strings(names)
		return pick(p.rng, names)
	}
	return fmt.Sprintf("n%d", p.rng.IntN(12))
}

func (p *player) holders() []gearsfs.SessionID {
	if p.rng.IntN(3) > 0 {
		return nil
	}
	return p.sessions[:1+p.rng.IntN(len(p.sessions))]
}

func (p *player) make() op {
	dir := p.dir()
	name := p.name(dir)
	mode := pick(p.rng, []uint32{modeFile, modeFile, modeFile, modeDir, modeDir, modeLink, modeFifo}) | 0o644
	o := &wire.Make{Dir: uint64(dir), Name: name, Mode: mode}
	if mode&modeType == modeLink {
		o.Target = "somewhere"
		o.Mode |= 0o777
	}
	if _, exists := p.model.inodes[dir].children[name]; exists {
		return op{op: o, want: gearsfs.ErrExists}
	}
	return op{op: o, done: func(a *wire.Answer) {
		n := &modelInode{mode: o.Mode, mtime: p.now, target: o.Target, xattrs: map[string]string{}}
		if isDir(mode) {
			n.children, n.nlink = map[string]gearsfs.Ino{}, 2
		}
		p.model.inodes[gearsfs.Ino(a.Ino)] = n
		p.model.attach(dir, name, gearsfs.Ino(a.Ino), p.now)
	}}
}

func (p *player) link() op {
	ino := pick(p.rng, p.model.inos(func(n *modelInode) bool { return n.nlink > 0 }))
	dir := p.dir()
	name := p.name(dir)
	o := &wire.Link{Ino: uint64(ino), Dir: uint64(dir), Name: name}
	_, exists := p.model.inodes[dir].children[name]
	switch {
	case exists:
		return op{op: o, want: gearsfs.ErrExists}
	case isDir(p.model.inodes[ino].mode):
		return op{op: o, want: gearsfs.ErrPermission}
	}
	return op{op: o, done: func(*wire.Answer) { p.model.attach(dir, name, ino, p.now) }}
}

func (p *player) unlinkName() op {
	dir := p.dir()
	name := p.name(dir)
	o := &wire.Unlink{Dir: uint64(dir), Name: name, IsDir: p.rng.IntN(2) == 0}
	ino, exists := p.model.inodes[dir].children[name]
	if !exists {
		return op{op: o, want: gearsfs.ErrNotFound}
	}
	n := p.model.inodes[ino]
	holders := p.holders()
	o.OpenIno, o.Holders = uint64(ino), idList(holders)
	switch {
	case o.IsDir && !isDir(n.mode):
		return op{op: o, want: gearsfs.ErrNotDir}
	case !o.IsDir && isDir(n.mode):
		return op{op: o, want: gearsfs.ErrIsDir}
	case len(n.children) > 0:
		return op{op: o, want: gearsfs.ErrNotEmpty}
	}
	return op{op: o, done: func(*wire.Answer) {
		p.model.detach(dir, name, p.now)
		p.model.unlinked(ino, holders, p.now)
	}}
}

func (p *player) renameName() op {
	dir, newDir := p.dir(), p.dir()
	name, newName := p.name(dir), p.name(newDir)
	holders := p.holders()
	flags := pick(p.rng, []uint32{0, 0, 0, renameNoReplace, renameExchange})
	o := &wire.Rename{Dir: uint64(dir), Name: name, NewDir: uint64(newDir), NewName: newName, Flags: flags, Holders: idList(holders)}
	ino, exists := p.model.inodes[dir].children[name]
	old, taken := p.model.inodes[newDir].children[newName]
	o.OpenIno = uint64(old)
	if !exists || flags == renameExchange && !taken {
		return op{op: o, want: gearsfs.ErrNotFound}
	}
	if taken && flags == renameNoReplace {
		return op{op: o, want: gearsfs.ErrExists}
	}
	n, v := p.model.inodes[ino], p.model.inodes[old]
	switch {
	case isDir(n.mode) && p.model.inside(newDir, ino):
		return op{op: o, want: gearsfs.ErrInvalid}
	case !taken || old == ino:
	case flags == renameExchange:
		if isDir(v.mode) && p.model.inside(dir, old) {
			return op{op: o, want: gearsfs.ErrInvalid}
		}
	case isDir(n.mode) && !isDir(v.mode):
		return op{op: o, want: gearsfs.ErrNotDir}
	case !isDir(n.mode) && isDir(v.mode):
		return op{op: o, want: gearsfs.ErrIsDir}
	case len(v.children) > 0:
		return op{op: o, want: gearsfs.ErrNotEmpty}
	}
	return op{op: o, done: func(*wire.Answer) {
		if ino == old {
			return
		}
		p.model.detach(dir, name, p.now)
		if taken {
			p.model.detach(newDir, newName, p.now)
		}
		for _, moved := range []gearsfs.Ino{ino, old} {
			if n := p.model.inodes[moved]; n != nil && !isDir(n.mode) && (moved == ino || flags == renameExchange) {
				n.nlink-- // attach counts the new name
			}
		}
		switch {
		case taken && flags == renameExchange:
			p.model.attach(dir, name, old, p.now)
		case taken:
			p.model.unlinked(old, holders, p.now)
		}
		p.model.attach(newDir, newName, ino, p.now)
	}}
}

func (p *player) setAttr() op {
	ino := pick(p.rng, p.model.inos(func(*modelInode) bool { return true }))
	n := p.model.inodes[ino]
	o := &wire.SetAttr{Ino: uint64(ino)}
	if p.rng.IntN(2) == 0 {
		mode := uint32(p.rng.IntN(0o1000))
		o.Mode = &mode
	} else {
		uid, gid, mtime := p.rng.Uint32N(5), p.rng.Uint32N(5), p.rng.Uint64N(3)
		o.Uid, o.Gid, o.Mtime = &uid, &gid, &mtime
	}
	return op{op: o, done: func(*wire.Answer) {
		n.ctime = p.now
		if o.Mode != nil {
			n.mode = n.mode&modeType | *o.Mode
			return
		}
		n.uid, n.gid, n.mtime = *o.Uid, *o.Gid, *o.Mtime
		if n.mtime == 0 {
			n.mtime = p.now
		}
	}}
}

func (p *player) setXattr() op {
	ino, n := p.file()
	if n == nil {
		return p.make()
	}
	o := &wire.SetXattr{Ino: uint64(ino), Name: fmt.Sprintf("user.%d", p.rng.IntN(4)), Flags: p.rng.Uint32N(3), Remove: p.rng.IntN(3) == 0}
	if o.Remove {
		o.Flags = 0
	}
	o.Value = []byte{byte(p.rng.Uint32())}
	_, exists := n.xattrs[o.Name]
	switch {
	case exists && o.Flags == xattrCreate:
		return op{op: o, want: gearsfs.ErrExists}
	case !exists && (o.Remove || o.Flags == xattrReplace):
		return op{op: o, want: gearsfs.ErrNoAttr}
	}
	return op{op: o, done: func(*wire.Answer) {
		n.ctime = p.now
		if o.Remove {
			delete(n.xattrs, o.Name)
		} else {
			n.xattrs[o.Name] = string(o.Value)
		}
	}}
}

// place picks a position near the edges of blocks and records.
func (p *player) place(n *modelInode) int {
	near := pick(p.rng, []int{n.head, n.cursor, len(n.val), len(n.val) + 40*k, blockBytes, 2 * blockBytes, 3 * blockBytes, p.rng.IntN(len(n.val) + 1)})
	return max(0, min(near+p.rng.IntN(9)-4, 200*k))
}

func (p *player) bytes() []byte {
	n := 1 + pick(p.rng, []int{p.rng.IntN(10), p.rng.IntN(5 * k), p.rng.IntN(70 * k)})
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(1 + p.rng.IntN(255))
	}
	return b
}

func (p *player) writeBytes() op {
	ino, n := p.file()
	if n == nil {
		return p.make()
	}
	pos, data := p.place(n), p.bytes()
	o := &wire.Write{Ino: uint64(ino), Pos: uint64(pos), Data: data}
	if p.rng.IntN(2) == 0 {
		o.Data, o.Extents = nil, p.blocks.append(data)
	}
	if !n.writable(pos, pos+len(data)) {
		return op{op: o, want: gearsfs.ErrIO}
	}
	return op{op: o, done: func(*wire.Answer) {
		n.resize(max(len(n.val), pos+len(data)))
		copy(n.val[pos:], data)
		n.mtime, n.ctime = p.now, p.now
	}}
}

func (p *player) appendRecord() op {
	ino, n := p.file()
	if n == nil {
		return p.make()
	}
	data := p.bytes()
	data = data[:p.rng.IntN(len(data))]
	o := &wire.Put{Target: &wire.Target{Ino: uint64(ino)}, Key: "data", Records: []*wire.NewRecord{{Data: data}}, Append: true}
	if p.rng.IntN(2) == 0 && len(data) > 0 {
		o.Records[0].Data, o.Records[0].Extents = nil, p.blocks.append(data)
	}
	return op{op: o, done: func(*wire.Answer) {
		n.resize(len(n.val) + len(data))
		copy(n.val[len(n.val)-len(data):], data)
		n.mtime, n.ctime = p.now, p.now
	}}
}

func (p *player) truncate() op {
	ino, n := p.file()
	if n == nil {
		return p.make()
	}
	size := uint64(max(0, p.place(n)-n.head))
	o := &wire.SetAttr{Ino: uint64(ino), Size: &size}
	return op{op: o, done: func(*wire.Answer) {
		n.resize(n.head + int(size))
		if size == 0 {
			n.cursor = n.head
			n.leases = nil
		}
		n.mtime, n.ctime = p.now, p.now
	}}
}

func (p *player) allocate() op {
	ino, n := p.file()
	if n == nil {
		return p.make()
	}
	pos, length := p.place(n), 1+p.rng.IntN(80*k)
	mode := pick(p.rng, []uint32{0, allocKeepSize, allocPunchHole | allocKeepSize, allocZeroRange, allocZeroRange | allocKeepSize})
	o := &wire.Allocate{Ino: uint64(ino), Pos: uint64(pos), Length: uint64(length), Mode: mode}
	return op{op: o, done: func(a *wire.Answer) {
		end := pos + length
		if mode&allocKeepSize == 0 {
			n.resize(max(len(n.val), end))
		}
		if mode&(allocPunchHole|allocZeroRange) != 0 && pos < len(n.val) {
			clear(n.val[pos:min(end, len(n.val))])
		}
		n.mtime, n.ctime = a.Attr.Mtime, a.Attr.Ctime
	}}
}

func (p *player) takeRecords() op {
	ino, n := p.file()
	if n == nil {
		return p.make()
	}
	id := pick(p.rng, p.sessions)
	o := &wire.Take{Target: &wire.Target{Ino: uint64(ino)}, Keys: []string{"data"}, Max: 1 + p.rng.Uint32N(3), Force: true, Lease: p.rng.IntN(2) == 0}
	return op{by: id, op: o, done: func(a *wire.Answer) {
		for _, t := range a.Records {
			pos, end := int(t.Pos), int(t.Pos)+len(t.Data)
			require.Equal(p.t, string(n.val[pos:end]), string(t.Data), "taken bytes")
			n.cursor = max(n.cursor, end)
			for i := pos; i < end; i++ {
				n.held[i] = o.Lease
			}
			if o.Lease {
				n.leases = append(n.leases, t)
				t.Ino, t.Time = uint64(ino), uint64(id.Salt) // who leased it
			} else {
				clear(n.val[pos:end])
			}
		}
		p.learnHead(ino, n)
	}}
}

// learnHead takes over where the machine says that a file begins, and its
// times, after records were taken.
func (p *player) learnHead(ino gearsfs.Ino, n *modelInode) {
	a := p.attr(ino)
	n.head, n.mtime, n.ctime = int(a.Head), uint64(a.Mtime.UnixNano()), uint64(a.Ctime.UnixNano())
	require.False(p.t, slices.Contains(n.held[:n.head], true), "inode %d: the head passed a record that lives", ino)
}

func (p *player) settle() op {
	ino, n := p.file()
	if n == nil || len(n.leases) == 0 {
		return p.takeRecords()
	}
	i := p.rng.IntN(len(n.leases))
	t := n.leases[i]
	o := &wire.Settle{Return: p.rng.IntN(2) == 0, Receipts: []*wire.Receipt{{Ino: uint64(ino), Key: "data", Pos: t.Pos, Seq: t.Seq, Fence: t.Fence}}}
	return op{by: p.sessions[t.Time], op: o, done: func(*wire.Answer) {
		n.leases = slices.Delete(n.leases, i, i+1)
		pos, end := int(t.Pos), min(int(t.Pos)+len(t.Data), len(n.val))
		if !o.Return {
			clear(n.val[pos:end])
			clear(n.held[pos:end])
		}
		p.learnHead(ino, n)
	}}
}

// copyFile copies a file over another, or to a new name.
func (p *player) copyFile() op {
	from, n := p.file()
	if n == nil {
		return p.make()
	}
	o := &wire.CopyFile{From: &wire.Target{Ino: uint64(from)}}
	to, old := p.file()
	if p.rng.IntN(2) == 0 {
		o.To = &wire.Target{Ino: uint64(to)}
		if to == from {
			return op{op: o, want: gearsfs.ErrInvalid}
		}
	} else {
		dir := p.dir()
		name := fmt.Sprintf("copy%d", p.rng.IntN(100))
		if _, exists := p.model.inodes[dir].children[name]; exists {
			return p.writeBytes()
		}
		o.To, old = &wire.Target{Dir: uint64(dir), Name: name}, nil
	}
	return op{op: o, done: func(a *wire.Answer) {
		if old == nil {
			old = &modelInode{mode: a.Attr.Mode, mtime: p.now, xattrs: map[string]string{}}
			to = gearsfs.Ino(a.Attr.Ino)
			p.model.inodes[to] = old
			p.model.attach(gearsfs.Ino(o.To.Dir), o.To.Name, to, p.now)
		}
		old.content = content{val: slices.Clone(n.val), held: make([]bool, len(n.val)), head: n.head, cursor: n.head}
		p.learnHead(to, old)
	}}
}

// copyRange copies some bytes of a file into another place.
func (p *player) copyRange() op {
	from, n := p.file()
	if n == nil {
		return p.make()
	}
	to, d := p.file()
	pos, at, length := p.place(n), p.place(d), 1+p.rng.IntN(150*k)
	o := &wire.CopyRange{FromIno: uint64(from), FromPos: uint64(pos), Ino: uint64(to), Pos: uint64(at), Length: uint64(length)}
	if from == to && pos < at+length && at < pos+length {
		return op{op: o, want: gearsfs.ErrInvalid}
	}
	length = min(length, len(n.val)-pos)
	return op{op: o, mayFail: gearsfs.ErrIO, done: func(a *wire.Answer) {
		count := int(a.Count)
		if length <= 0 {
			require.Zero(p.t, count)
			return
		}
		require.Positive(p.t, count)
		require.LessOrEqual(p.t, count, length)
		d.resize(max(len(d.val), at+count))
		copy(d.val[at:], n.val[pos:pos+count])
		d.mtime, d.ctime = a.Attr.Mtime, a.Attr.Ctime
	}}
}

func (p *player) release() op {
	inos := p.model.inos(func(n *modelInode) bool { return n.nlink == 0 })
	if len(inos) == 0 {
		return p.unlinkName()
	}
	ino := pick(p.rng, inos)
	n := p.model.inodes[ino]
	id := pick(p.rng, n.holders)
	return op{by: id, op: &wire.Release{Ino: uint64(ino)}, done: func(*wire.Answer) {
		n.holders = slices.DeleteFunc(slices.Clone(n.holders), func(h gearsfs.SessionID) bool { return h == id })
		if len(n.holders) == 0 {
			delete(p.model.inodes, ino)
		}
	}}
}

func (p *player) next() op {
	ops := []func() op{p.make, p.make, p.make, p.link, p.unlinkName, p.unlinkName, p.renameName, p.renameName, p.setAttr,
		p.setXattr, p.writeBytes, p.writeBytes, p.writeBytes, p.save, p.appendRecord, p.appendRecord, p.truncate,
		p.allocate, p.takeRecords, p.settle, p.release, p.copyFile, p.copyRange, p.copyRange}
	return pick(p.rng, append(ops, p.more...))()
}
