"""What a run says to people and programs. These modules read nothing but :class:`gatepost.verify.model.Report`."""
