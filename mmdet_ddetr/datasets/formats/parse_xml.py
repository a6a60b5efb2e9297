"""XML that may come from strangers, with the lines of its elements."""

from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from ..errors import DataError

LINE = 'line'  # attribute that every element gets


def parse_xml(data: bytes) -> Element:
    """The root of an XML file; every element has its line as an attribute.

    Raises:
        expat.ExpatError: it is none, with the line.
        DataError: it defines entities, by which a small file can fill the memory, or has an unknown encoding.
    """
    builder, parser = TreeBuilder(), expat.ParserCreate()

    def start(tag: str, attributes: dict) -> None:
        builder.start(tag, {**attributes, LINE: str(parser.CurrentLineNumber)})

    def refuse(*_) -> None:
        raise DataError(f'line {parser.CurrentLineNumber}: it defines entities')

    parser.StartElementHandler = start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(data, True)
    except DataError:
        raise
    except (LookupError, ValueError) as error:  # an encoding that there is none of
        raise DataError(f'line 1: {error}') from None
    return builder.close()
