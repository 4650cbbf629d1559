package file

import (
	"fmt"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/stream"
	"github.com/gearsfs/gearsfs/wire"
)

// Check reads all tables as of now and returns what contradicts itself in
// them, at most checkErrorsMax findings; nil is a sound volume. It holds about
// 200 bytes per inode and stream in memory, and a bit per page of the block store. It may run beside everything else.
func (m *Machine) Check() []error {
	m.mu.RLock()
	view := m.store.View()
	m.mu.RUnlock()
	defer view.Close()
	c := check{
		view:    view,
		inodes:  make(map[gearsfs.Ino]*checkedInode),
		streams: make(map[streamKey]*checkedStream),
		quotaOf: make(map[uint64]*checkedQuota),
	}
	for _, step := range []func() error{c.readVolume, c.readInodes, c.readDirents, c.readXattrs,
		c.readOrphans, c.readLocks, c.readQuotas, c.readStreams, c.readOuts, c.readTimers, c.readShared, c.readRecords, c.readKept, c.readIDs, c.readIDOrder, c.readMembers} {
		if err := step(); err != nil {
			return append(c.found, err)
		}
	}
	c.compareStreams()
	c.compareInodes()
	c.compareShared()
	c.compareQuotas()
	return c.found
}

const checkErrorsMax = 100

type check struct {
	view    View
	found   []error
	volume  wire.VolumeRow
	inodes  map[gearsfs.Ino]*checkedInode
	order   []gearsfs.Ino // of inodes, so that findings come in order
	streams map[streamKey]*checkedStream
	keys    []streamKey // of streams
	pages   pageCheck
	quotas  []*checkedQuota
	quotaOf map[uint64]*checkedQuota
}

// checkedInode is an inode's row beside what other tables say about it.
type checkedInode struct {
	row     wire.InodeRow
	links   uint32
	parent  gearsfs.Ino // of the last name found
	subdirs uint32
	entries uint64
	xattrs  uint64
	streams uint64
	bytes   uint64 // of them
	orphan  bool
}

type checkedStream struct {
	state    stream.State
	extents  uint64 // rows with extents, as counted, less those found
	fresh    uint64
	bytes    uint64
	leased   uint64
	returned uint64
	ids      uint64 // numbers of ids
	delayed  uint64
	ahead    uint64                       // of delayed
	last     gearsfs.Pos                  // where the last record that lives ends
	outs     map[gearsfs.Place]stream.Out // marks without a record so far
	timers   map[gearsfs.Place]uint64     // dues of marks without a timer so far
}

func (c *check) bad(format string, args ...any) {
	if len(c.found) < checkErrorsMax {
		c.found = append(c.found, gearsfs.ErrDamaged.Because(format, args...))
	}
}

func (c *check) table(table persist.Table, visit func(key, value []byte) error) error {
	lo, hi := persist.TableRange(table)
	return scan(c.view, lo, hi, visit)
}

func (c *check) readVolume() error {
	value, ok, err := c.view.Get(persist.VolumeKey(), nil)
	if err != nil {
		return err
	}
	if !ok {
		return gearsfs.ErrDamaged.Because("the volume is not initialised")
	}
	return c.volume.UnmarshalVT(value)
}

func (c *check) readInodes() error {
	return c.table(persist.TableInode, func(key, value []byte) error {
		ino, err := persist.ParseInodeKey(key)
		if err != nil {
			return err
		}
		n := &checkedInode{}
		if err := n.row.UnmarshalVT(value); err != nil {
			return damaged("inode", err)
		}
		c.inodes[ino] = n
		c.order = append(c.order, ino)
		if uint64(ino) >= c.volume.NextIno {
			c.bad("inode %d: the next one is to be %d", ino, c.volume.NextIno)
		}
		return nil
	})
}

func (c *check) readDirents() error {
	return c.table(persist.TableDirent, func(key, value []byte) error {
		dirIno, name, err := persist.ParseDirentKey(key)
		if err != nil {
			return err
		}
		d, err := parseDirent(value)
		if err != nil {
			return err
		}
		dir, n := c.inodes[dirIno], c.inodes[d.ino]
		switch {
		case dir == nil:
			c.bad("name %q is in inode %d, which does not exist", name, dirIno)
			return nil
		case n == nil:
			c.bad("name %q in inode %d leads to inode %d, which does not exist", name, dirIno, d.ino)
			return nil
		case !isDir(dir.row.Mode):
			c.bad("name %q is in inode %d, which is not a directory", name, dirIno)
		case d.mode != n.row.Mode&modeType:
			c.bad("name %q in inode %d says type %o, inode %d has %o", name, dirIno, d.mode, d.ino, n.row.Mode&modeType)
		}
		dir.entries++
		n.links++
		n.parent = dirIno
		if isDir(n.row.Mode) {
			dir.subdirs++
		}
		return gearsfs.CheckName(name)
	})
}

func (c *check) readXattrs() error {
	return c.table(persist.TableXattr, func(key, _ []byte) error {
		ino, name, err := persist.ParseXattrKey(key)
		if err != nil {
			return err
		}
		if n := c.inodes[ino]; n != nil {
			n.xattrs++
		} else {
			c.bad("attribute %q of inode %d, which does not exist", name, ino)
		}
		return nil
	})
}

func (c *check) readOrphans() error {
	return scanOrphans(c.view, func(ino gearsfs.Ino, holders []gearsfs.SessionID) {
		switch n := c.inodes[ino]; {
		case n == nil:
			c.bad("orphan %d does not exist", ino)
		case len(holders) == 0 && !n.row.Doomed:
			c.bad("orphan %d is held by nobody", ino)
		default:
			n.orphan = true
		}
	})
}

func (c *check) readMembers() error {
	named := make(map[string]gearsfs.MemberID)
	return scanMembers(c.view, func(id gearsfs.MemberID, row *wire.MemberRow) {
		if row.Removed {
			return
		}
		if other, taken := named[row.Name]; taken {
			c.bad("members %x and %x are both named %q", uint64(other), uint64(id), row.Name)
		}
		named[row.Name] = id
	})
}

func (c *check) readStreams() error {
	return c.table(persist.TableStream, func(key, value []byte) error {
		ino, name, err := persist.ParseStreamKey(key)
		if err != nil {
			return err
		}
		var row wire.StreamRow
		if err := row.UnmarshalVT(value); err != nil {
			return damaged("stream", err)
		}
		n := c.inodes[ino]
		if n == nil || !isFile(n.row.Mode) {
			c.bad("stream %q of inode %d, which is not a regular file", name, ino)
			return nil
		}
		n.streams++
		id := streamKey{ino, name}
		c.streams[id] = &checkedStream{state: stateOf(&row), extents: row.Extents, outs: make(map[gearsfs.Place]stream.Out), timers: make(map[gearsfs.Place]uint64)}
		if row.AgeDue != 0 {
			c.streams[id].timers[persist.AgeTimer] = row.AgeDue
		}
		if row.IdsDue != 0 {
			c.streams[id].timers[persist.IDTimer] = row.IdsDue
		}
		c.keys = append(c.keys, id)
		return nil
	})
}

func (c *check) readOuts() error {
	lo, hi := persist.TableRange(persist.TableOut)
	return scanOuts(c.view, lo, hi, func(rowKey []byte, at gearsfs.Place, out stream.Out) error {
		ino, key, _, err := persist.ParseOutKey(rowKey)
		if err != nil {
			return err
		}
		s := c.streams[streamKey{ino, key}]
		if s == nil {
			c.bad("mark of record %v of stream %q of inode %d, which does not exist", at, key, ino)
			return nil
		}
		ahead := !at.Less(s.state.Cursor)
		if ahead && !out.Delayed() {
			c.bad("stream %q of inode %d: the mark of %v is not in front of the cursor", key, ino, at)
		}
		if out.Fence >= c.volume.NextFence && out.Leased {
			c.bad("stream %q of inode %d: %v has fence %d, the next is to be %d", key, ino, at, out.Fence, c.volume.NextFence)
		}
		if out.Jumped > jumped(&c.volume) {
			c.bad("stream %q of inode %d: the lease of %v knows of a jump that never was", key, ino, at)
		}
		switch {
		case out.Leased:
			s.leased++
		case out.Delayed():
			s.delayed++
		default:
			s.returned++
		}
		if ahead {
			s.ahead++
		}
		if out.Deadline != 0 {
			s.timers[at] = out.Deadline
		}
		s.outs[at] = out
		return nil
	})
}

// readTimers checks that each timer is that of a mark or of a stream's age.
func (c *check) readTimers() error {
	return c.table(persist.TableTimer, func(key, _ []byte) error {
		t, err := persist.ParseTimerKey(key)
		if err != nil {
			return err
		}
		s := c.streams[streamKey{t.Ino, t.Key}]
		if s == nil || s.timers[t.Place] != t.Due {
			c.bad("stream %q of inode %d: a timer of %v at %d is not known to it", t.Key, t.Ino, t.Place, t.Due)
			return nil
		}
		delete(s.timers, t.Place)
		return nil
	})
}

func (c *check) readRecords() error {
	return c.table(persist.TableRecord, func(rowKey, value []byte) error {
		ino, key, at, err := persist.ParseRecordKey(rowKey)
		if err != nil {
			return err
		}
		var row wire.RecordRow
		if err := row.UnmarshalVTUnsafe(value); err != nil {
			return damaged("record", err)
		}
		s := c.streams[streamKey{ino, key}]
		if s == nil {
			c.bad("record %v of stream %q of inode %d, which does not exist", at, key, ino)
			return nil
		}
		rec := recordOf(&row)
		if wrong := s.record(at, &rec); wrong != "" {
			c.bad("stream %q of inode %d, record %v: %s", key, ino, at, wrong)
		}
		if len(rec.Extents) == 0 {
			return nil
		}
		s.extents--
		if wrong := c.pages.extents(rec.Extents); wrong != "" {
			c.bad("stream %q of inode %d, record %v: %s", key, ino, at, wrong)
		}
		return nil
	})
}

// record counts a record's row and says what is wrong with it.
func (s *checkedStream) record(at gearsfs.Place, row *stream.Record) string {
	size, block := uint64(row.Len()), gearsfs.Pos(blockBytes)
	if len(row.Extents) > 0 {
		block = extentBlockBytes
	}
	out, isOut := s.outs[at]
	delete(s.outs, at)
	switch {
	case isOut && out.Bytes != size:
		return fmt.Sprintf("has %d bytes, its mark says %d", size, out.Bytes)
	case isOut:
	case at.Less(s.state.Cursor):
		return "" // gone, and not cleaned up yet
	default:
		s.fresh++
	}
	s.bytes += size
	end := at.Pos + gearsfs.Pos(size)
	defer func() { s.last = end }()
	switch {
	case at.Less(s.state.Head):
		return "lives in front of the head"
	case at.Pos < s.last:
		return fmt.Sprintf("overlaps one that ends at %d", s.last)
	case end > s.state.Tail || at.Seq >= s.state.NextSeq:
		return fmt.Sprintf("is behind the tail %v", s.state.End())
	case row.Block && (size == 0 || end > at.Pos-at.Pos%block+block):
		return fmt.Sprintf("is a block of %d bytes", size)
	}
	return ""
}

func (c *check) compareStreams() {
	var bytes uint64
	for _, id := range c.keys {
		s := c.streams[id]
		bytes += s.bytes
		c.inodes[id.ino].bytes += s.bytes
		st := &s.state
		if got, want := fmt.Sprint(st.Ready, st.Leased, st.Returned, st.Delayed, st.DelayedAhead, st.Bytes),
			fmt.Sprint(s.fresh+s.returned, s.leased, s.returned, s.delayed, s.ahead, s.bytes); got != want {
			c.bad("stream %q of inode %d: counts of ready, leased, returned and delayed records, delayed ones ahead and bytes are %s, found %s",
				id.key, id.ino, got, want)
		}
		if len(s.timers) > 0 {
			c.bad("stream %q of inode %d: %d timers are missing", id.key, id.ino, len(s.timers))
		}
		if st.Age != 0 && st.Ready > 0 && st.AgeDue == 0 {
			c.bad("stream %q of inode %d: nobody looks for records that are too old", id.key, id.ino)
		}
		if st.IDs > 0 && st.IDsDue == 0 {
			c.bad("stream %q of inode %d: nobody looks for ids that are too old", id.key, id.ino)
		}
		if len(s.outs) > 0 {
			c.bad("stream %q of inode %d: %d marks without a record", id.key, id.ino, len(s.outs))
		}
		if s.extents != 0 {
			c.bad("stream %q of inode %d: its count of rows with extents is wrong by %d", id.key, id.ino, int64(s.extents))
		}
		if s.ids != st.IDs {
			c.bad("stream %q of inode %d counts %d ids, found %d", id.key, id.ino, st.IDs, s.ids)
		}
		if st.Cursor.Less(st.Cleaned) || st.Cursor.Pos > st.Tail || st.Head.Pos > st.Tail {
			c.bad("stream %q of inode %d: cleaned %v, head %v, cursor %v, tail %d", id.key, id.ino, st.Cleaned, st.Head, st.Cursor, st.Tail)
		}
	}
	if bytes != c.volume.Bytes {
		c.bad("the volume counts %d bytes, found %d", c.volume.Bytes, bytes)
	}
}

func (c *check) compareInodes() {
	if n := uint64(len(c.order)); n != c.volume.Inodes {
		c.bad("the volume counts %d inodes, found %d", c.volume.Inodes, n)
	}
	doomed := uint64(0)
	for _, ino := range c.order {
		n := c.inodes[ino]
		row := &n.row
		links := n.links
		if isDir(row.Mode) {
			c.directory(ino, n)
			if links > 0 || ino == gearsfs.RootIno {
				links = 2 + n.subdirs
			}
		}
		if row.Doomed {
			doomed++
		}
		if row.Nlink != links || row.Orphan != n.orphan || n.orphan != (links == 0) {
			c.bad("inode %d: link count %d, names make it %d; orphan %v, in its table %v", ino, row.Nlink, links, row.Orphan, n.orphan)
		}
		if row.Counted && row.Bytes != n.bytes {
			c.bad("inode %d counts %d bytes, found %d", ino, row.Bytes, n.bytes)
		}
		if row.Entries != n.entries || row.Xattrs != n.xattrs || row.Streams != n.streams {
			c.bad("inode %d: counts of entries, attributes and streams are %d, %d, %d, found %d, %d, %d",
				ino, row.Entries, row.Xattrs, row.Streams, n.entries, n.xattrs, n.streams)
		}
	}
	if doomed != c.volume.Doomed {
		c.bad("the volume counts %d inodes that are doomed, found %d", c.volume.Doomed, doomed)
	}
}

// directory checks that a directory has one name, where it says, and that its
// parents lead to the root.
func (c *check) directory(ino gearsfs.Ino, n *checkedInode) {
	if ino == gearsfs.RootIno {
		if n.links > 0 || n.row.Parent != uint64(ino) {
			c.bad("the root directory has %d names and parent %d", n.links, n.row.Parent)
		}
		return
	}
	if n.links == 0 {
		return
	}
	if n.links > 1 || n.row.Parent != uint64(n.parent) {
		c.bad("directory %d has %d names, one in %d; its parent is %d", ino, n.links, n.parent, n.row.Parent)
	}
	for up, steps := n, 0; up != nil; steps++ {
		if up.row.Parent == uint64(gearsfs.RootIno) {
			return
		}
		if steps > len(c.order) {
			break
		}
		up = c.inodes[gearsfs.Ino(up.row.Parent)]
	}
	c.bad("directory %d can't be reached from the root", ino)
}
