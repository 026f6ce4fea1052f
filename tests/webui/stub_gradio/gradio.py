"""As much of Gradio's interface as the tab uses, common to 3.41 and 4.40: components remember values and clicks."""
components = {}


class Progress:
    """Called with a share and a description."""

    def __init__(self):
        self.seen = []

    def __call__(self, share, desc=None):
        assert 0 <= share <= 1 and isinstance(desc, str)
        self.seen.append(desc)


class _Layout:
    def __init__(self, analytics_enabled=None):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


class Blocks(_Layout):
    """A page."""


class Row(_Layout):
    """A row."""


class _Component:
    def __init__(self, value=None, label=None, elem_id=None):
        self.value, self.label, self.elem_id = value, label, elem_id
        components[elem_id] = self


class Markdown(_Component):
    """Text."""


class Number(_Component):
    """A number."""


class Textbox(_Component):
    """Text that is written to."""

    def __init__(self, label=None, lines=1, interactive=None, elem_id=None):
        super().__init__("", label, elem_id)


class Dropdown(_Component):
    """A choice."""

    def __init__(self, choices, value=None, label=None, elem_id=None):
        assert all(isinstance(choice, str) for choice in choices)
        super().__init__(value, label, elem_id)
        self.choices = choices


class Button(_Component):
    """A click calls fn(*values of inputs) and gives its result to the outputs."""

    def __init__(self, value, variant=None, elem_id=None):
        super().__init__(value, None, elem_id)

    def click(self, fn, inputs, outputs, queue=None):
        self.fn, self.inputs, self.outputs = fn, inputs, outputs

    def press(self):
        result = self.fn(*(component.value for component in self.inputs))
        outputs = self.outputs if isinstance(self.outputs, list) else [self.outputs]
        for component, new in zip(outputs, result if isinstance(result, tuple) else [result] if outputs else []):
            if isinstance(new, dict):
                vars(component).update(new)
            else:
                component.value = new


def update(**changes):
    """What a handler returns to change a component."""
    return changes
