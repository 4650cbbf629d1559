package file

import (
	"slices"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/wire"
)

// rowsAtOnce is how many rows LiveRows reads as of one moment.
const rowsAtOnce = 1024

// Row says which row refers to an extent: that of a record, or with Kept one that
// an answer keeps for a retry.
type Row struct {
	Ino   gearsfs.Ino
	Key   gearsfs.Key
	Place gearsfs.Place
	Kept  bool
}

// LiveRows is Live for who takes long: it calls yield with the extents of each row
// as of a moment shortly before, and keeps nothing from being compacted. off is
// how many of the row's bytes are in front of the extent. What moves from one
// stream to another meanwhile may be missed.
func (m *Machine) LiveRows(yield func(row Row, off uint64, e gearsfs.Extent) error) error {
	lo, hi := persist.TableRange(persist.TableRecord)
	for lo != nil {
		batch, next, err := m.liveBatch(lo, hi)
		if err != nil {
			return err
		}
		for _, l := range batch {
			if err := yield(l.row, l.off, l.extent); err != nil {
				return err
			}
		}
		lo = next
	}
	kept, err := m.keptExtents()
	if err != nil {
		return err
	}
	for _, e := range kept {
		if err := yield(Row{Kept: true}, 0, e); err != nil {
			return err
		}
	}
	return nil
}

type liveExtent struct {
	row    Row
	off    uint64
	extent gearsfs.Extent
}

// liveBatch reads the next rows, and where to go on; nil at the end.
func (m *Machine) liveBatch(lo, hi []byte) (batch []liveExtent, next []byte, err error) {
	r := m.read()
	defer r.close()
	n := 0
	var row wire.RecordRow
	err = scan(r.view, lo, hi, func(key, value []byte) error {
		if n++; n > rowsAtOnce {
			next = slices.Clone(key)
			return errStop
		}
		row.Reset()
		if err := row.UnmarshalVTUnsafe(value); err != nil {
			return damaged("record", err)
		}
		if len(row.Extents) == 0 {
			return nil
		}
		ino, name, place, err := persist.ParseRecordKey(key)
		if err != nil {
			return err
		}
		off := uint64(0)
		for _, w := range row.Extents {
			if w.Origin != 0 {
				e := ExtentOf(w)
				e.Sums = slices.Clone(e.Sums)
				batch = append(batch, liveExtent{Row{Ino: ino, Key: name, Place: place}, off, e})
			}
			off += w.Length
		}
		return nil
	})
	return batch, next, err
}

// keptExtents are those of the rows that answers keep.
func (m *Machine) keptExtents() (kept []gearsfs.Extent, err error) {
	r := m.read()
	defer r.close()
	err = liveKept(r.view, func(e gearsfs.Extent) error {
		kept = append(kept, e)
		return nil
	})
	return kept, err
}

// Refers reports whether a row that LiveRows told of still refers to a page of the
// extent.
func (m *Machine) Refers(row Row, e gearsfs.Extent) (bool, error) {
	if row.Kept {
		kept, err := m.keptExtents()
		return slices.ContainsFunc(kept, func(k gearsfs.Extent) bool { return overlaps(&k, &e) }), err
	}
	r := m.read()
	defer r.close()
	value, ok, err := r.view.Get(persist.RecordKey(row.Ino, row.Key, row.Place), nil)
	if err != nil || !ok {
		return false, err
	}
	var now wire.RecordRow
	if err := now.UnmarshalVT(value); err != nil {
		return false, damaged("record", err)
	}
	return slices.ContainsFunc(ExtentsOf(now.Extents), func(k gearsfs.Extent) bool { return overlaps(&k, &e) }), nil
}

func overlaps(a, b *gearsfs.Extent) bool {
	return a.Origin == b.Origin && a.Segment == b.Segment && a.At < b.At+b.Size && b.At < a.At+a.Size
}

// Paths finds a path for each of the inodes that has a name. It reads all names,
// and keeps those of directories in memory.
func (m *Machine) Paths(inos map[gearsfs.Ino]bool) (map[gearsfs.Ino]string, error) {
	r := m.read()
	defer r.close()
	type entry struct {
		dir  gearsfs.Ino
		name string
	}
	names := make(map[gearsfs.Ino]entry)
	lo, hi := persist.TableRange(persist.TableDirent)
	err := scan(r.view, lo, hi, func(key, value []byte) error {
		dir, name, err := persist.ParseDirentKey(key)
		if err != nil {
			return err
		}
		d, err := parseDirent(value)
		if err == nil && (isDir(d.mode) || inos[d.ino]) {
			names[d.ino] = entry{dir, name}
		}
		return err
	})
	paths := make(map[gearsfs.Ino]string)
	for ino := range inos {
		path, at := "", ino
		for steps := 0; at != gearsfs.RootIno && steps <= len(names); steps++ {
			e, ok := names[at]
			if !ok {
				break
			}
			path, at = "/"+e.name+path, e.dir
		}
		if at == gearsfs.RootIno && path != "" {
			paths[ino] = path
		}
	}
	return paths, err
}
