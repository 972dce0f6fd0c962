"""The commands, one file each: config in, one typed call, result printed."""
