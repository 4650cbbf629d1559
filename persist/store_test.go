package persist_test

import (
	"github.com/gearsfs/gearsfs/file"
	"github.com/gearsfs/gearsfs/persist"
)

var _ file.Store = (*persist.State)(nil)
