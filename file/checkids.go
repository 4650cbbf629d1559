package file

import (
	"github.com/gearsfs/gearsfs/persist"
	"github.com/gearsfs/gearsfs/wire"
)

// readIDs checks that each id stands under its number.
func (c *check) readIDs() error {
	return c.table(persist.TableID, func(k, value []byte) error {
		ino, key, id, err := persist.ParseIDKey(k)
		if err != nil {
			return err
		}
		var row wire.IdRow
		if err := row.UnmarshalVT(value); err != nil {
			return damaged("id", err)
		}
		s := c.streams[streamKey{ino, key}]
		if s == nil {
			c.bad("id %q of stream %q of inode %d, which does not exist", id, key, ino)
			return nil
		}
		numbered, ok, err := c.view.Get(persist.IDOrderKey(ino, key, row.Number), nil)
		if err == nil && (!ok || string(numbered) != id) {
			c.bad("stream %q of inode %d: id %q has number %d, which stands for %q", key, ino, id, row.Number, numbered)
		}
		if row.Seq >= uint64(s.state.NextSeq) || row.Time > c.volume.LogTime {
			c.bad("stream %q of inode %d: id %q is of seq %d, put at %d", key, ino, id, row.Seq, row.Time)
		}
		return err
	})
}

// readIDOrder checks that the numbers of a stream's ids have no gaps, and that
// each stands for an id, which may have a later number by now.
func (c *check) readIDOrder() error {
	return c.table(persist.TableIDOrder, func(k, value []byte) error {
		ino, key, number, err := persist.ParseIDOrderKey(k)
		if err != nil {
			return err
		}
		s := c.streams[streamKey{ino, key}]
		if s == nil {
			c.bad("id number %d of stream %q of inode %d, which does not exist", number, key, ino)
			return nil
		}
		s.ids++
		if st := &s.state; number >= st.NextID || number < st.NextID-st.IDs {
			c.bad("stream %q of inode %d: id number %d is not one of the %d in front of %d", key, ino, number, st.IDs, st.NextID)
		}
		row, err := readIDRow(c.view, ino, key, string(value))
		if err == nil && (row == nil || row.Number < number) {
			c.bad("stream %q of inode %d: id number %d stands for %q, which is not known", key, ino, number, value)
		}
		return err
	})
}
